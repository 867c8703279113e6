"""All people of a tenant together."""

from collections.abc import Iterator

from authz.detect.tenants import Hours, Tenants
from authz.record import Record
from tests.detected import access, detector, found, ward

DAYS = 21


def crowd(day: int, hour: float, number: int, **more: object) -> Iterator[Record]:
    """Each of them by somebody else, so that nobody alone does anything unusual."""
    for one in range(number):
        yield access(f"n.{one:03}", day, hour + one / number / 2, **more)


def history(days: int) -> Iterator[Record]:
    for day in range(days):
        for hour in range(8, 18):
            yield from crowd(day, hour, 20 + (day * 7 + hour * 3) % 5)


def test_more_than_usual_at_that_hour() -> None:
    """Is told once, of that tenant, with records that show it; the day before nothing is."""
    watcher = detector()
    assert not [one for one in found(watcher, history(DAYS)) if one.rule == "tenant_volume"]
    noon = [*crowd(DAYS, 8, 22), *crowd(DAYS, 9, 300), *crowd(DAYS, 10, 23), *crowd(DAYS, 11, 20)]
    [finding] = [one for one in found(watcher, noon) if one.rule == "tenant_volume"]
    assert (finding.subject, finding.lane, len(finding.records)) == ("", "review", 100)
    assert "300 requests within an hour" in finding.evidence
    assert set(finding.records) <= {str(record["decision_id"]) for record in noon[22:322]}


def test_what_is_usual_at_one_hour_is_not_at_another() -> None:
    """As many at night as by day are told."""
    watcher = detector()
    found(watcher, history(DAYS))
    night = [*crowd(DAYS, 2, 200), *crowd(DAYS, 3, 1)]
    assert "tenant_volume" in {one.rule for one in found(watcher, night)}


def test_each_tenant_by_itself() -> None:
    """Another's requests explain nothing."""
    watcher = detector()
    for day in range(DAYS):
        for hour in range(24):
            found(watcher, crowd(day, hour, 30, tenant="hillside"))
            found(watcher, [access("n.1", day, hour + 0.6, tenant="lakeside")])
    many = [*crowd(DAYS, 0, 30, tenant="lakeside"), access("n.1", DAYS, 1.9, tenant="lakeside")]
    told = [one for one in found(watcher, many) if one.rule == "tenant_volume"]
    assert [(one.tenant, one.cause) for one in told] == [("lakeside", "tenant_volume/lakeside")]


def test_a_restart_says_the_same() -> None:
    """What is usual is learnt again from the hours that are kept."""
    records = [*history(DAYS), *crowd(DAYS, 9, 300), *crowd(DAYS, 10, 20)]
    whole = detector()
    expected = [one for one in found(whole, records) if one.rule == "tenant_volume"]
    first = detector()
    found(first, records[:-310])
    second = detector(memory=first.memory)
    assert [one for one in found(second, records[-310:]) if one.rule == "tenant_volume"] == expected
    assert expected


def test_silence_is_no_cause() -> None:
    """Holidays and nights are told by nobody, however long; what is kept is bounded."""
    hours: dict[str, Hours] = {}
    watcher = detector()
    watcher._tenants = Tenants(hours)
    found(watcher, history(DAYS))
    late = [access("n.001", day, 9) for day in (DAYS + 4, DAYS + 400)]
    assert not [one for one in found(watcher, late) if one.rule == "tenant_volume"]
    assert len(hours[""].before) == 24 * 7 * 8


def test_a_ward_that_works_is_quiet() -> None:
    """Weeks of usual work."""
    rules = [one.rule for one in found(detector(), ward(12, 40))]
    assert "tenant_volume" not in rules
