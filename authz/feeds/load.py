"""A load: what a source tells, put into the store. Nobody reads it before it is committed."""

from collections import defaultdict
from collections.abc import Callable

from authz.feeds.source import Source
from authz.record import Record, notice
from authz.store.client import Client
from authz.store.feeds import Loading, Row

EVENT = "feed_loaded"
_AT_ONCE = 20_000


def put(
    client: Client, source: Source, expires: int, progress: Callable[[int], None] = lambda _: None
) -> Loading:
    """Put all rows of `source` where `commit` has them read; `progress` is told how many they are.
    Raises `AuthzError`, and `authz.store.client.QUERY_ERRORS`: then nothing is changed."""
    loading = Loading(client, expires)
    batches: dict[str, list[Row]] = defaultdict(list)
    for number, (feed, row) in enumerate(source.read(), 1):
        batch = batches[feed]
        batch.append(row)
        if len(batch) == _AT_ONCE:
            loading.add(feed, batch)
            batch.clear()
            progress(number)
    for feed in source.told:
        loading.begin(feed)
    for feed, batch in batches.items():
        if batch:
            loading.add(feed, batch)
    progress(sum(loading.counts.values()))
    loading.check()
    return loading


def notices(loading: Loading, source: Source, by: str, now_us: int) -> list[Record]:
    """What goes on record of a load, one for each feed."""
    return [
        notice(
            EVENT, now_us,
            {
                "feed": feed, "rows": loading.counts[feed], "source": source.told[feed], "by": by,
                "version": version,
            },
        )
        for feed, version in loading.versions.items()
    ]  # fmt: skip
