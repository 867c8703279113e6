"""Rules about who is looked at: people one may be curious about, where nothing explains it.

How much such an access tells is how seldom it would happen by chance: if this person looks at so
many charts without a known reason as usual, and those were drawn at random, how likely would one of
them be a relative's?
"""

import math
from collections.abc import Iterator

from authz.detect.suspicion import Sight, Suspicion
from authz.detect.usual import DAY_US, UNEXPLAINED

_AWAY_DAYS, _LONG_AWAY_DAYS = 5, 12  # holidays are silences too


def related(sight: Sight) -> Iterator[Suspicion]:
    """An access to someone of the same household or surname, a co-worker or a VIP."""
    if not sight.strange:
        return
    feeds, known = sight.feeds, sight.known
    usual = sight.day.usual[UNEXPLAINED]
    drawn = max(usual.mean, sight.day.counts[UNEXPLAINED], 0.05)
    charts = max(len(feeds.patients), len(feeds.staff), 1)
    for patient in sight.strange:
        if patient == known.patient and patient:
            continue
        chart = feeds.chart(patient)
        colleague = feeds.staff.get(patient, "")
        found: list[tuple[float, str]] = []
        if known.household and chart.household == known.household:
            found.append((feeds.households[known.household] / charts, "of the same household"))
        if known.surname and chart.surname == known.surname:
            found.append((feeds.surnames[known.surname] / charts, "of the same surname"))
        if chart.vip:
            found.append((feeds.vips / charts, "on the VIP list"))
        if colleague and colleague != sight.event.subject:
            theirs = feeds.known(colleague)
            if known.department and theirs.department == known.department:
                number = feeds.departments[known.department]
                found.append((number / charts, "a co-worker of the same department"))
            else:
                found.append((len(feeds.staff) / charts, "a co-worker"))
        if not found:
            continue
        shares = [share for share, _ in found]
        # Two relations at once are rarer than either; half counted, since they go together.
        rarest, *others = sorted(shares)
        chance = rarest * math.sqrt(math.prod(others))
        score = -math.log10(-math.expm1(-drawn * chance))
        if score <= 0.3:
            continue
        names = ", ".join(name for _, name in found)
        yield Suspicion(
            "relation", score,
            f"Opened the record of someone {names}; no care team, appointment or order explains it",
            f"{usual.mean:.1f} records without a known reason a day", "",
            (sight.day.unexplained.get(patient, sight.event.id),), cause=found[0][1],
        )  # fmt: skip


def gone(sight: Sight) -> Iterator[Suspicion]:
    """Somebody who has left, or whose account is disabled."""
    known, event, person = sight.known, sight.event, sight.person
    if not known.gone:
        return
    certain = True
    if known.until:
        if event.time < known.until:
            return
        usual = "none: they had left"
    elif sight.feeds.as_of and event.time >= sight.feeds.as_of:
        usual = "none: they have left"
    else:
        # When they left is not told: what comes after a silence, or from one who was never there.
        away = person.gap_us / DAY_US
        if away < _AWAY_DAYS if person.seen_days else sight.day.date - sight.world.since < 14:
            return
        certain = not person.seen_days or away >= _LONG_AWAY_DAYS
        usual = f"none: there was nothing for {away:.0f} days" if person.seen_days else "none"
    yield Suspicion(
        "terminated", 12.0 if certain else 3.0,
        "A request of somebody whose status is terminated or disabled", usual, "",
        tuple(sight.day.recent), certain=certain,
    )  # fmt: skip
