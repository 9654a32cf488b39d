"""Metadata of results: complete where everything is installed, and not in the way where something is not."""

from __future__ import annotations

import importlib.metadata

from cifs_tf.config import RunConfig
from cifs_tf.runs import provenance


def test_versions_of_what_is_installed(monkeypatch):
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package-of-an-extra"))
    versions = provenance.describe(RunConfig())["versions"]
    assert set(versions) == {"python", "numpy"}
    assert versions["numpy"] == importlib.metadata.version("numpy")


def test_an_installed_package_takes_no_revision_of_a_repository_around_it(monkeypatch, tmp_path):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "site-packages" / "cifs_tf" / "runs" / "provenance.py"))
    assert provenance.revision() is None
