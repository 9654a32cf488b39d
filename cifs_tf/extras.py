"""The optional packages: which extra of `pip install 'cifs-tf[EXTRA]'` brings which module."""

import contextlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable

# By extra, the modules that it brings and the core does not; the extras themselves stand in pyproject.toml.
MODULES = {
    "data": ("tensorflow_datasets", "importlib_resources"),
    "tune": ("keras_tuner",),
    "serve": (
        "tensorflow_serving",
        "grpc_health",
        "grpc_reflection",
        "starlette",
        "uvicorn",
        "h11",
        "rapidjson",
        "prometheus_client",
        "PIL",
    ),
    "export": ("tf2onnx", "onnx", "onnxruntime"),
    "report": ("matplotlib",),
}


def is_installed(extra: str) -> bool:
    """Return whether every module of an extra can be imported; none is imported for it.

    Example:
        >>> is_installed("export")
        True
    """
    return all(importlib.util.find_spec(module) is not None for module in MODULES[extra])


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed, by name."""
    found = {}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def own_version() -> str:
    """Return the version of this project; `0+unknown` of a checkout that is not installed."""
    return versions_of(["cifs-tf"]).get("cifs-tf", "0+unknown")


def require(extra: str) -> None:
    """Check that an extra is installed.

    Raises:
        ModuleNotFoundError: naming the first of its modules that is missing.
    """
    for module in MODULES[extra]:
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def how_to_install(error: ModuleNotFoundError) -> str | None:
    """Return one sentence that names the `pip install` of a missing module; None if no extra brings it.

    Example:
        >>> how_to_install(ModuleNotFoundError(name="onnx.checker"))
        "the package onnx is missing; install it with: pip install 'cifs-tf[export]'"
    """
    module = (error.name or "").partition(".")[0]
    for extra, modules in MODULES.items():
        if module in modules:
            return f"the package {module} is missing; install it with: pip install 'cifs-tf[{extra}]'"
    return None
