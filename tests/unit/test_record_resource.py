"""What a request is about; and no part of its path that could be a person's is shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from authz.record.fhir import OPERATIONS, RESOURCE_TYPES
from authz.record.resource import Resource, Resources

FHIR = Resources()
LITERALS = RESOURCE_TYPES | OPERATIONS | {"fhir", "metadata", "_history", "_search"}


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        # hl7.org/fhir/R4/http.html#summary
        ("GET", "/fhir/Patient/123", ("/fhir/Patient/{id}", "Patient", "123", ("123",), "R")),
        ("HEAD", "/fhir/Patient/123", ("/fhir/Patient/{id}", "Patient", "123", ("123",), "R")),
        ("GET", "/fhir/Patient/1/_history/2",
         ("/fhir/Patient/{id}/_history/{}", "Patient", "1", ("1",), "R")),
        ("GET", "/fhir/Patient/1/_history",
         ("/fhir/Patient/{id}/_history", "Patient", "1", ("1",), "R")),
        ("PUT", "/fhir/Observation/9",
         ("/fhir/Observation/{id}", "Observation", "9", (), "U")),
        ("PATCH", "/fhir/Observation/9",
         ("/fhir/Observation/{id}", "Observation", "9", (), "U")),
        ("DELETE", "/fhir/Observation/9",
         ("/fhir/Observation/{id}", "Observation", "9", (), "D")),
        ("POST", "/fhir/Observation", ("/fhir/Observation", "Observation", "", (), "C")),
        ("GET", "/fhir/Observation", ("/fhir/Observation", "Observation", "", (), "E")),
        ("POST", "/fhir/Observation/_search",
         ("/fhir/Observation/_search", "Observation", "", (), "E")),
        ("GET", "/fhir/metadata", ("/fhir/metadata", "", "", (), "R")),
        ("POST", "/fhir", ("/fhir", "", "", (), "C")),
        ("GET", "/fhir/_history", ("/fhir/_history", "", "", (), "R")),
        # operations and compartments
        ("GET", "/fhir/Patient/7/$everything",
         ("/fhir/Patient/{id}/$everything", "Patient", "7", ("7",), "E")),
        ("POST", "/fhir/Patient/$match", ("/fhir/Patient/$match", "Patient", "", (), "E")),
        ("POST", "/fhir/Patient/$joe-smith", ("/fhir/Patient/{id}", "Patient", "", (), "E")),
        ("GET", "/fhir/Patient/7/Observation",
         ("/fhir/Patient/{id}/Observation", "Patient", "7", ("7",), "R")),
        ("GET", "/fhir/Patient/7/Observation/8",
         ("/fhir/Patient/{id}/Observation/{}", "Patient", "7", ("7",), "R")),
        # segments that are no name of FHIR's
        ("GET", "/fhir/patient/7", ("/fhir/{}/{}", "", "", (), "R")),
        ("GET", "/fhir/joe.smith", ("/fhir/{}", "", "", (), "R")),
        ("GET", "/fhir/Patient/Patient", ("/fhir/Patient/{id}", "Patient", "Patient", ("Patient",),
                                          "R")),
        ("GET", "/elsewhere/Patient/7", ("/{}/{}/{}", "", "", (), "R")),
        ("GET", "/", ("/", "", "", (), "R")),
        ("GET", "", ("/", "", "", (), "R")),
        ("LOCK", "/fhir/Patient/7", ("/fhir/Patient/{id}", "Patient", "7", ("7",), "E")),
        # escapes
        ("GET", "/fhir/%50atient/%31", ("/fhir/Patient/{id}", "Patient", "1", ("1",), "R")),
        ("GET", "/fhir/Patient/a%2Fb", ("/fhir/Patient/{id}", "Patient", "a/b", ("a/b",), "R")),
        ("GET", "/fhir/Patient/%FF",
         ("/fhir/Patient/{id}", "Patient", "\\xff", ("\\xff",), "R")),
    ],
)  # fmt: skip
def test_fhir(method, path, wanted):
    """Each of FHIR's interactions is read as what it is; what is not FHIR's is not shown."""
    assert FHIR.read(method, path) == Resource(*wanted)


@pytest.mark.parametrize(
    ("query", "patients"),
    [
        ("patient=1", ("1",)),
        ("subject=Patient/1", ("1",)),
        ("subject=https://ehr.example/fhir/Patient/1", ("1",)),
        ("subject=Group/1", ()),
        ("patient=1,2,Patient/3", ("1", "2", "3")),
        ("patient=1&patient=2&subject=Patient/1", ("1", "2")),
        ("patient%3APatient=1", ("1",)),
        ("subject:Patient=1", ("1",)),
        ("%70atient=%31", ("1",)),
        ("patient=Patient%2F1", ("1",)),
        ("patient=", ()),
        ("patient=Patient/", ()),
        ("_id=1", ()),
        ("code=1&name=patient", ()),
    ],
)
def test_patients_asked_for(query, patients):
    """Patients named in a query are found, however it is written; other values are dropped."""
    found = FHIR.read("GET", f"/fhir/Observation?{query}")
    assert found.patients == patients
    assert found.path == "/fhir/Observation"


def test_search_by_id():
    """A search for patients by `_id` names them."""
    assert FHIR.read("GET", "/fhir/Patient?_id=1,2").patients == ("1", "2")


def test_very_many_parameters():
    """A long query is read to its end: the last parameter may be the patient."""
    query = "&".join(f"x{number}=1" for number in range(5000))
    assert FHIR.read("GET", f"/fhir/Observation?{query}&patient=9").patients == ("9",)


def test_templates():
    """The operator's templates come first, must fit whole, and name patient and resource."""
    resources = Resources(
        templates=("/api/charts/{patient}/notes/{id}", "/api/{type}/{id}", "/fhir/Patient/me")
    )
    assert resources.read("GET", "/api/charts/7/notes/8") == Resource(
        "/api/charts/{patient}/notes/{id}", "", "8", ("7",), "R"
    )
    assert resources.read("DELETE", "/api/letters/8?x=1") == Resource(
        "/api/{type}/{id}", "letters", "8", (), "D"
    )
    assert resources.read("GET", "/api/charts/7/notes").path == "/{}/{}/{}/{}"
    assert resources.read("GET", "/fhir/Patient/me").path == "/fhir/Patient/me"
    assert resources.read("GET", "/fhir/Patient/you").path == "/fhir/Patient/{id}"


def test_bases():
    """FHIR is read under each base given, at any depth, and under the root if that is one."""
    resources = Resources(bases=("/a/b/", "/c"))
    assert resources.read("GET", "/a/b/Patient/1").path == "/a/b/Patient/{id}"
    assert resources.read("GET", "/c/Patient/1").path == "/c/Patient/{id}"
    assert resources.read("GET", "/a/Patient/1").path == "/{}/{}/{}"
    assert Resources(bases=("/",)).read("GET", "/Patient/1").path == "/Patient/{id}"


SEGMENTS = st.lists(
    st.sampled_from(sorted(LITERALS)) | st.text(max_size=12) | st.sampled_from(["%2f", "..", "$x"]),
    max_size=6,
)


@given(st.text(max_size=8), SEGMENTS, st.booleans(), st.text(max_size=20))
def test_nothing_unknown_is_shown(method, segments, based, query):
    """Whatever is asked, a template holds FHIR's own names and placeholders, and nothing else."""
    path = "/".join(["/fhir" if based else "", *segments])
    found = FHIR.read(method, f"{path}?{query}")
    shown = [segment for segment in found.path.split("/") if segment]
    assert set(shown) <= LITERALS | {"{}", "{id}"}
    assert found.type in RESOURCE_TYPES | {""}
    assert found.action in set("CRUDE")


@given(st.text(st.characters(exclude_characters="/?%#", codec="utf-8"), min_size=1, max_size=20))
def test_an_identifier_is_never_shown(identifier):
    """In the place of an identifier nothing is shown but FHIR's own names, and the patient is
    found."""
    found = FHIR.read("GET", f"/fhir/Patient/{identifier}")
    special = identifier in LITERALS and identifier[0] in "$_m"
    assert found.path == f"/fhir/Patient/{identifier if special else '{id}'}"
    if identifier[0] not in "$_":
        assert found.patients == (identifier,)
