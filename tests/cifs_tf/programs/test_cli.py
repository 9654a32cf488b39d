"""The command line: recipes, overrides, and errors of one sentence."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import typing

import pytest
import yaml

from cifs_tf.config import GROUPS, ModelConfig, Ratio, RunConfig
from cifs_tf.errors import UserError
from cifs_tf.runs.recipes import KNOWN, RECIPES, dump_yaml, parse_config, recipe_for
from tests.test_imports import ROOT

PROGRAMS = sorted(file.stem for file in (ROOT / "cifs_tf" / "programs").glob("[a-z]*.py"))
REFUSED = [
    ("run", "--dataset=nope", "folder:PATH"),
    ("run", "--dataset=folder:gone", "no such folder"),
    ("run", "--method=nope", "fat, trades"),
    ("tune", "--importance=nope", "softmax, softplus"),
    ("reproduce", "--table=99", "B.1"),
]
REFUSE = """
import importlib, sys
from cifs_tf.errors import UserError
programs = {name: importlib.import_module(f"cifs_tf.programs.{name}") for name in %r}
for name, argument, advice in %r:
    try:
        sys.exit(f"{name} {argument}: {programs[name].main([argument])}")
    except UserError as error:
        assert advice in error.advice, error
assert not {"tensorflow", "scipy", "sklearn", "matplotlib"} & set(sys.modules)
"""


def parse(*argv):
    return parse_config("run.py", "A program.", argv)


def number_or_text(value):
    """Return the number behind 2e-4, which YAML reads as text, and behind 8/255."""
    try:
        return float(Ratio(value))
    except ValueError:
        return str(value)


def test_field_names_are_unique_across_groups():
    names = [field.name for group in GROUPS.values() for field in dataclasses.fields(group)]
    assert len(names) == len(set(names))


def test_every_field_is_documented():
    for group in GROUPS.values():
        for field in dataclasses.fields(group):
            assert f"    {field.name}: " in group.__doc__, f"{group.__name__}.{field.name}"


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipe_parses_and_opens_with_table_numbers_and_command(recipe):
    config = parse("--recipe", str(recipe))
    for name, written in yaml.safe_load(recipe.read_text()).items():
        assert number_or_text(config.flat()[name]) == number_or_text(written), name
    first, second = recipe.read_text().splitlines()[:2]
    assert "able" in first
    assert "GPU hours" in first
    assert second.startswith("# python training/run.py")


@pytest.mark.parametrize(
    ("dataset", "recipe"),
    [
        ("svhn", "svhn"),
        ("cifar10", "cifar10"),
        ("fashion_mnist", "fashion_mnist"),
        ("digits", "digits"),
        ("cifar100", "default"),
        ("tfds:mnist", "default"),
        ("folder:../recipes/svhn", "default"),
    ],
)
def test_recipe_follows_the_dataset(dataset, recipe):
    assert recipe_for(dataset).stem == recipe
    assert parse("--dataset", dataset).data.dataset == dataset
    assert parse(f"--dataset={dataset}").data.dataset == dataset


def test_paper_hyper_parameters():
    """Appendices B, C and D."""
    svhn, cifar10, fashion = (parse("--dataset", name) for name in ("svhn", "cifar10", "fashion_mnist"))
    assert (svhn.train.learning_rate, svhn.train.weight_decay, svhn.train.lr_milestones) == (0.01, 5e-4, (75, 90))
    assert (cifar10.train.learning_rate, cifar10.train.weight_decay) == (0.1, 2e-4)
    assert (float(cifar10.attack.epsilon), float(cifar10.attack.step_size)) == (8 / 255, 2 / 255)
    assert (cifar10.attack.num_steps, cifar10.train.epochs, cifar10.train.beta) == (10, 120, 2)
    assert (fashion.attack.epsilon, fashion.attack.step_size, fashion.attack.num_steps) == (0.3, 0.02, 20)
    assert fashion.train.lr_milestones == (45, 75, 90)
    assert fashion.model.arch == "resnet10"
    assert {c.model.importance_scale for c in (svhn, cifar10, fashion)} == {"sum_to_one"}
    digits = parse()
    assert (digits.attack.epsilon, digits.attack.step_size, digits.attack.num_steps) == (0.1, 0.025, 7)
    assert digits.model.importance_scale == "mean_one"


def test_options_override_the_recipe_whatever_the_dash():
    config = parse("--dataset", "svhn", "--train-examples", "256", "--weight_decay=1e-3", "--epsilon", "4/255")
    assert config.data.train_examples == 256
    assert config.train.weight_decay == 1e-3
    assert float(config.attack.epsilon) == 4 / 255


def test_options_override_a_recipe_given_after_them(tmp_path):
    (tmp_path / "recipe.yaml").write_text("epochs: 7\nwidth: 5\n")
    config = parse("--epochs", "1", "--recipe", str(tmp_path / "recipe.yaml"))
    assert (config.train.epochs, config.model.width) == (1, 5)


def test_config_survives_yaml(tmp_path):
    config = parse("--dataset", "svhn", "--cuts", "a,b", "--eval_step_sizes", "{pgd20: 1/255}", "--width", "16")
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(config))
    assert parse("--recipe", str(file)) == config


@pytest.mark.parametrize(
    ("argv", "option", "received", "advice"),
    [
        (["--epochs", "x"], "--epochs", "x", "an integer"),
        (["--epochs", "0"], "--epochs", "0", "1 or more"),
        (["--defense", "foo"], "--defense", "foo", "cifs, cas, ewas, fsr, se, vanilla"),
        (["--epsilon", "1/0"], "--epsilon", "1/0", "8/255"),
        (["--epsilon", "2"], "--epsilon", "2", "at most 1"),
        (["--widht", "3"], "--widht", "option", "--width"),
        (["--top_k"], "--top_k", "no value", "an integer"),
        (["--beta", "-1"], "--beta", "-1", "0 or more"),
        (["--precision", "float16"], "--precision", "float16", "mixed_bfloat16"),
        (["--attacks", "fgsm,"], "--attacks", "fgsm,", "a list such as a,b,c"),
        (["--recipe", "missing.yaml"], "--recipe", "missing.yaml", "YAML"),
        (["--random_start", "perhaps"], "--random_start", "perhaps", "true or false"),
        (["--width", "wide"], "--width", "wide", "an integer or null"),
        (["unheard"], "unheard", "option", "--help"),
    ],
)
def test_errors_name_option_value_and_way_out(argv, option, received, advice):
    with pytest.raises(UserError) as error:
        parse(*argv)
    assert error.value.argument == option
    assert received in str(error.value.received)
    assert advice in error.value.advice
    assert "\n" not in str(error.value)


def test_bad_names_are_refused_before_anything_heavy_is_imported(tmp_path):
    command = [sys.executable, "-c", REFUSE % (PROGRAMS, REFUSED)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True)
    assert not list(tmp_path.iterdir())


def test_names_without_a_plugin_are_those_that_are_registered():
    from cifs_tf.adversarial.methods import METHODS
    from cifs_tf.layers.importance import _REGISTRY

    ours = {
        name: {key for key, value in registry.items() if value.__module__.startswith("cifs_tf.")}
        for name, registry in (("method", METHODS), ("importance", _REGISTRY))
    }
    assert ours == {name: set(known) for name, known in KNOWN.items()}


@pytest.mark.parametrize(("text", "option"), [("epochz: 3\n", "--epochz"), ("epochs: [\n", "--recipe")])
def test_broken_recipes_are_named(tmp_path, text, option):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        parse("--recipe", str(tmp_path / "recipe.yaml"))
    assert error.value.argument == option


def test_help_and_print_config(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse("--help")
    text = capsys.readouterr().out
    for group in GROUPS.values():
        for name in typing.get_type_hints(group):
            assert f"--{name}" in text
    with pytest.raises(SystemExit, match="0"):
        parse("--dataset", "svhn", "--print_config")
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["epsilon"] == "8/255"
    assert printed["learning_rate"] == 0.01


def test_ranges_hold_in_the_library_too():
    with pytest.raises(UserError, match="--top_k: received 0; give a number of 1 or more"):
        ModelConfig(top_k=0)
    assert RunConfig.from_flat({"lr_milestones": [3]}).train.lr_milestones == (3,)
