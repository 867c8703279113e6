"""What a check of an export has proven, and what it has not, in words."""

from collections.abc import Iterator

from authz.report.exports.check import CheckedExport, CheckedLog


def proven(checked: CheckedExport) -> list[str]:
    """What is so, whoever made the export: a line for each thing."""
    lines = [
        f"{file.name} is the file that the manifest tells of: SHA-256 {file.sha256}"
        for file in checked.manifest.files
    ]
    for log in checked.logs:
        names = ", ".join(f"{key.name}+{key.key_id.hex()}" for key in log.signed)
        lines.append(
            f"{log.checkpoint.origin} had {log.checkpoint.size} records: signed by {names},"
            " which the trust file names"
        )
        if log.proven and log.part.records:
            lines.append(_records(log))
    return lines


def _records(log: CheckedLog) -> str:
    origin, size, part = log.checkpoint.origin, log.checkpoint.size, log.part
    if log.whole and part.records == size:
        return f"{origin}: these are all its {size} records: as they stand here they give its root"
    if log.whole:
        return (
            f"{origin}: these are all its records from number {part.first} to {part.end - 1},"
            f" {part.records}: with {len(part.proof or ())} hashes they give its root"
        )
    return (
        f"{origin}: these {part.records} records are its own, as they stand here, each in its"
        f" place: with {len(part.proof or ())} hashes they give its root"
    )


def not_proven(checked: CheckedExport) -> list[str]:
    """What whoever made the export only says."""
    lines = list(_about_logs(checked))
    filters = checked.manifest.filters
    asked = [name for name, value in filters.model_dump().items() if value]
    if asked and not all(log.whole and log.part.records == log.checkpoint.size
                         for log in checked.logs):  # fmt: skip
        lines.append(
            f"that no other record meets the filters ({', '.join(asked)}): whoever may read the"
            " database can run authz verify and the same export again"
        )
    lines.append("that there are no other logs, and who made this when: the manifest is not signed")
    return lines


def _about_logs(checked: CheckedExport) -> Iterator[str]:
    filtered = any(checked.manifest.filters.model_dump().values())
    for log in checked.logs:
        origin, part, size = log.checkpoint.origin, log.part, log.checkpoint.size
        if part.records and not log.proven:
            why = f": {part.no_proof}" if part.no_proof else ""
            yield f"that these {part.records} records are those of {origin}{why}"
        elif part.records < size and not filtered:
            yield f"why {size - part.records} records of {origin} are not here: authz verify tells"
