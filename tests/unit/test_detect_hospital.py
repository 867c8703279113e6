"""What a benchmark may rely on in the simulated hospital."""

import csv
import json
from collections import defaultdict
from datetime import datetime
from ipaddress import ip_address, ip_network
from itertools import chain, islice, pairwise

import maxminddb
import pytest

from authz.record import canonical, clean
from tests.bench.detect.feeds import write_locations
from tests.bench.detect.hospital import generate, write
from tests.bench.detect.options import Options
from tests.bench.detect.places import NETWORKS
from tests.bench.detect.truth import KINDS

_OPTIONS = Options.small()


@pytest.fixture(scope="module")
def hospital():
    return generate(_OPTIONS)


@pytest.fixture(scope="module")
def records(hospital):
    return list(hospital.records())


def _feeds(hospital, directory):
    hospital.feeds(directory)
    found = {}
    for path in directory.iterdir():
        with path.open(newline="") as file:
            found[path.name] = list(csv.DictReader(file))
    return found


@pytest.fixture(scope="module")
def feeds(hospital, tmp_path_factory):
    return _feeds(hospital, tmp_path_factory.mktemp("feeds"))


def _id(record):
    return record.get("decision_id") or record["request_id"]


def _misused(hospital):
    return {each for misuse in hospital.truth for each in misuse.records}


def test_a_seed_makes_the_same_hospital(hospital, records):
    """Same options, same records and truth, whether read once or twice; another seed, others."""
    again = generate(_OPTIONS)
    assert again.truth == hospital.truth
    assert list(again.records()) == records
    assert list(islice(again.records(), 2_000)) == records[:2_000]
    other = generate(Options.small(seed=2))
    assert {_id(record) for record in islice(other.records(), 2_000)}.isdisjoint(map(_id, records))


def test_records_are_canonical_and_in_time_order(records):
    """Each is exactly as the receiver would leave it, and none is earlier than the one before."""
    for record in records:
        assert clean(record) == record
        assert canonical(record)
    assert all(one["time"] <= other["time"] for one, other in pairwise(records))


def test_ids_are_of_one_request_each(records):
    """Two records share a decision id only as a denial's decision and its access."""
    kinds = defaultdict(list)
    for record in records:
        kinds[_id(record)].append(record["kind"])
    assert {tuple(each) for each in kinds.values()} == {("access",), ("decision", "access")}


def test_truth_names_records_that_are_there(hospital, records):
    """Every kind is there; each misuse's records are its subject's or address's, within its time,
    once training is over."""
    by_id = {_id(record): record for record in records}
    begin = _OPTIONS.begin(_OPTIONS.calm - 1) * 1_000_000
    assert {misuse.kind for misuse in hospital.truth} == set(KINDS)
    for misuse in hospital.truth:
        mine = [by_id[each] for each in misuse.records]
        assert begin < misuse.begin_us == mine[0]["time"]
        assert misuse.end_us == mine[-1]["time"]
        for record in mine:
            assert record.get("subject", "") == misuse.subject
            assert misuse.address in ("", record["source_ip"])
    subjects = [misuse.subject or misuse.address for misuse in hospital.truth]
    assert len(set(subjects)) == len(subjects)


def _reasons(feeds):
    """The intervals of each subject and patient, in microseconds."""
    found = defaultdict(list)
    for row in chain(*(feeds[f"{name}.csv"] for name in ("care_team", "appointments", "orders"))):
        times = [datetime.fromisoformat(row[name]).timestamp() * 1e6 for name in ("from", "until")]
        found[row["subject"], row["patient"]].append(times)
    return found


@pytest.mark.parametrize("unexplained", [0.02, 0.10])
def test_feeds_explain_all_innocent_looks_at_charts_but_a_given_share(tmp_path, unexplained):
    """The share that nothing explains is at most the one asked for, and not far below."""
    hospital = generate(Options(3, 300, 6_000, 24, unexplained=unexplained, misuses=0))
    reasons = _reasons(_feeds(hospital, tmp_path))
    charts = odd = 0
    for record in hospital.records():
        if record["kind"] == "access" and record.get("patients"):
            charts += 1
            known = reasons[record["subject"], record["patients"][0]]
            odd += not any(begin <= record["time"] <= end for begin, end in known)
    assert 0.6 * unexplained < odd / charts <= unexplained


def test_no_field_and_no_value_of_one_is_only_misuse(hospital, records):
    """Misuse has no field that innocent records have not, no rarer form of a value with few."""
    misused = _misused(hospital)
    innocent = [record for record in records if _id(record) not in misused]
    names = set().union(*innocent)
    few = ("kind", "writer", "decided_by", "roles", "purpose", "method", "path", "reason_code")
    values = {name: {str(record.get(name)) for record in innocent} for name in few}
    for record in records:
        if _id(record) in misused:
            assert record.keys() <= names
            for name in few:
                assert str(record.get(name)) in values[name]


def test_misuse_is_hidden_in_its_subjects_usual_life(hospital, records):
    """Nobody exists for misuse alone: who misuses an account has an innocent history with it."""
    begin = {misuse.subject: misuse.begin_us for misuse in hospital.truth if misuse.subject}
    misused, innocent = _misused(hospital), defaultdict(int)
    for record in records:
        subject = record.get("subject")
        if subject in begin and record["time"] < begin[subject] and _id(record) not in misused:
            innocent[subject] += 1
    assert min(innocent[subject] for subject in begin) >= 20


def test_feeds_agree_with_records(feeds, records):
    """Whoever acts is in people.csv with the role that the records say; each patient of a record
    is in patients.csv."""
    roles = {row["subject"]: row["role"] for row in feeds["people.csv"]}
    patients = {row["patient"] for row in feeds["patients.csv"]}
    for record in records:
        if subject := record.get("subject"):
            assert record["roles"] == [roles[subject]]
        assert patients.issuperset(record.get("patients", ()))
    assert len(roles) == _OPTIONS.people
    assert len(patients) == _OPTIONS.patients


def test_a_terminated_account_is_used_after_its_end_by_misuse_only(hospital, feeds, records):
    """What the personnel office says tells this misuse, and no innocent record contradicts it."""
    until = {
        row["subject"]: datetime.fromisoformat(row["until"]).timestamp() * 1e6
        for row in feeds["people.csv"]
        if row["status"] != "active"
    }
    late = {
        _id(record) for record in records if record["time"] > until.get(record.get("subject"), 1e20)
    }
    told = [misuse.records for misuse in hospital.truth if misuse.kind == "terminated"]
    assert late == set(chain(*told))


def test_countries_are_those_of_the_networks(records, tmp_path):
    """`country` is what networks.csv and the geolocation database say of the address."""
    write_locations(tmp_path / "networks.mmdb")
    told = {one["source_ip"]: one.get("country", "") for one in records if one["kind"] == "access"}
    networks = [(ip_network(each.cidr), each) for each in NETWORKS]
    with maxminddb.open_database(tmp_path / "networks.mmdb") as database:
        for address, country in told.items():
            [network] = [each for cidr, each in networks if ip_address(address) in cidr]
            place = database.get(address) or {"country": {"iso_code": ""}}
            assert country == network.country == place["country"]["iso_code"]


def test_rates_are_a_hospitals():
    """About 15 requests a person and working day, most days of most people far below the busiest;
    billing has its month's end."""
    hospital = generate(Options(5, 300, 6_000, 32, misuses=0))
    daily = defaultdict(int)
    for record in hospital.records():
        if record["kind"] == "access" and not record.get("subject", "svc.").startswith("svc."):
            day = (record["time"] // 1_000_000 - hospital.hall.options.midnight) // 86_400
            daily[record["subject"], record["roles"][0], day] += 1
    counts = sorted(daily.values())
    assert 12 < sum(counts) / len(counts) < 20
    assert counts[-1] > 6 * counts[len(counts) // 2]
    billing = defaultdict(list)
    for (_, role, day), count in daily.items():
        if role == "billing":
            billing[hospital.hall.options.month_end(day)].append(count)
    mean = {peak: sum(each) / len(each) for peak, each in billing.items()}
    assert mean[True] > 1.4 * mean[False]


def test_it_writes_what_a_replay_reads(hospital, records, tmp_path):
    """The files are the records, the truth, the networks and the five feeds."""
    assert write(hospital, tmp_path) == len(records)
    with (tmp_path / "records.ndjson").open() as file:
        assert [json.loads(line) for line in islice(file, 2_000)] == records[:2_000]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"records.ndjson", "truth.json", "networks.csv", "networks.mmdb", "feeds"}
    assert len(list((tmp_path / "feeds").iterdir())) == 5


def test_a_hospital_too_small_for_its_misuse_says_so():
    """It fails, and does not leave some out."""
    with pytest.raises(ValueError, match="so much misuse"):
        generate(Options(1, 200, 4_000, 30, misuses=60))
