"""Compiles protos/ and takes deploy/ into the wheel; everything else is in pyproject.toml.

With SOURCE_DATE_EPOCH set, a commit gives the same wheel wherever it is built: a wheel keeps the
modes of its files, so these must not be the builder's umask.
"""

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent

os.umask(0o022)


class BuildPy(build_py):
    def run(self) -> None:
        out = HERE if self.editable_mode else Path(self.build_lib)
        super().run()
        self.compile_protos(out)
        if not self.editable_mode:
            shutil.copytree(
                HERE / "deploy",
                out / "authz" / "_deploy",
                ignore=shutil.ignore_patterns("__pycache__"),
                dirs_exist_ok=True,
            )
            for path in out.rglob("*"):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)

    def compile_protos(self, out: Path) -> None:
        from grpc_tools import protoc

        out.mkdir(parents=True, exist_ok=True)
        protos = sorted(str(path) for path in (HERE / "protos").rglob("*.proto"))
        options = [f"-I{HERE / 'protos'}", f"--python_out={out}", f"--pyi_out={out}"]
        if protoc.main(["protoc", *options, *protos]) != 0:
            sys.exit("protoc failed")


setup(cmdclass={"build_py": BuildPy})
