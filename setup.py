"""Compiles protos/ and takes deploy/ into the wheel; everything else is in pyproject.toml."""

import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent


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

    def compile_protos(self, out: Path) -> None:
        from grpc_tools import protoc

        out.mkdir(parents=True, exist_ok=True)
        protos = sorted(str(path) for path in (HERE / "protos").rglob("*.proto"))
        options = [f"-I{HERE / 'protos'}", f"--python_out={out}", f"--pyi_out={out}"]
        if protoc.main(["protoc", *options, *protos]) != 0:
            sys.exit("protoc failed")


setup(cmdclass={"build_py": BuildPy})
