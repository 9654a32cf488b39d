"""What the suites are made of."""

import pytest
import tensorflow as tf

from cifs_tf.errors import UserError
from cifs_tf.evaluation import make_attacks, suites
from cifs_tf.evaluation.chance import describe_change
from cifs_tf.evaluation.radii import default_epsilon
from cifs_tf.evaluation.suites import SUITES, describe_missing
from cifs_tf.losses import PAPER_ATTACK_BETAS


def make_suite(*args, **options):
    """A suite without the sanity checks, which are part of all."""
    return [task for task in suites.make_suite(*args, **options) if task.section != "sanity"]


def of(tasks, **fields):
    """Tasks with these fields."""
    return [task for task in tasks if all(getattr(task, name) == value for name, value in fields.items())]


@pytest.fixture
def cifs(make_victim):
    return make_victim(num_classes=10, num_probes=2)


def test_paper_is_every_attack_at_every_beta_on_all_images(cifs):
    tasks = make_suite("paper", cifs, 0.1)
    assert len(tasks) == 1 + 4 * 9
    assert {task.on for task in tasks} == {"all"}
    for name in ("fgsm", "pgd20", "cw30", "pgd100"):
        found = of(tasks, family=name)
        assert [task.beta for task in found] == list(PAPER_ATTACK_BETAS)
        assert all(task.attack.keep == "last" and not task.attack.random_start for task in found)


def test_standard_has_the_budgets_of_autoattack(cifs):
    tasks = make_suite("standard", cifs, 0.1)
    families = [task.family for task in tasks]
    assert families == ["", "apgd_ce", *["apgd_t"] * 9, *["fab_t"] * 9, "square"]
    assert [task.target_rank for task in of(tasks, family="apgd_t")] == list(range(2, 11))
    assert {task.attack.num_steps for task in tasks[1:-1]} == {100}
    assert tasks[-1].attack.num_queries == 5000
    assert {task.on for task in tasks[1:]} == {"standing"}


@pytest.mark.parametrize(("norm", "starts", "targets"), [("l2", 1, 9), ("l1", 5, 5)])
def test_other_norms_have_the_budgets_of_autoattack(norm, starts, targets, cifs):
    tasks = make_suite("standard", cifs, 2.0, norm=norm)
    counts = {family: len(of(tasks, family=family)) for family in ("apgd_ce", "apgd_t", "fab_t", "square")}
    assert counts == {"apgd_ce": starts, "apgd_t": targets, "fab_t": 9, "square": 1}
    assert {(task.attack.norm, task.attack.epsilon) for task in tasks[1:]} == {(norm, 2.0)}
    strict = suites.make_suite("strict", cifs, 2.0, norm=norm)
    assert {task.attack.norm for task in strict if hasattr(task, "attack")} == {norm}
    assert not of(strict, section="paper")
    farthest = max(task.x for task in of(strict, pool="epsilon"))
    assert farthest == {"l2": 8.0, "l1": 64.0}[norm]  # of 64 pixels
    with pytest.raises(UserError, match=rf"norm: received {norm}; .*suites in l2 and l1: standard, plus, strict"):
        make_suite("quick", cifs, 2.0, norm=norm)


def test_minimal_takes_in_every_mask_gradient_and_beta(cifs, make_victim):
    pairs = {(beta, mask) for beta in PAPER_ATTACK_BETAS for mask in cifs.mask_gradients}
    for norm, families in (("linf", {"fmn"}), ("l2", {"fmn", "ddn"}), ("l1", {"fmn"})):
        tasks = make_suite("minimal", cifs, 0.5, norm=norm)
        assert {task.family for task in tasks} == {"", "fab_t", *families}
        for family in families:
            assert {(task.beta, task.mask_gradient) for task in of(tasks, family=family)} == pairs
        assert {task.target_rank for task in of(tasks, family="fab_t")} == {2, 3, 4}
        assert {(task.attack.norm, task.on) for task in tasks[1:]} == {(norm, "correct")}
    two = make_suite("minimal", make_victim(num_probes=0), 0.1)
    assert [task.target_rank for task in of(two, family="fab_t")] == [2]


def test_plus_starts_apgd_five_times(cifs):
    tasks = make_suite("plus", cifs, 0.1)
    counts = {family: len(of(tasks, family=family)) for family in ("apgd_ce", "apgd_dlr", "apgd_t", "fab_t", "square")}
    assert counts == {"apgd_ce": 5, "apgd_dlr": 5, "apgd_t": 9, "fab_t": 9, "square": 1}
    assert len({task.stream for task in tasks}) == len(tasks)


def test_radii_of_other_norms_are_those_of_robustbench():
    assert default_epsilon("l2", (32, 32, 3)) == 0.5
    assert default_epsilon("l1", (32, 32, 3)) == 12
    assert default_epsilon("l1", (16, 16, 3)) == 3


def test_strict_takes_in_every_mask_gradient_and_beta(cifs):
    tasks = make_suite("strict", cifs, 0.1)
    pairs = {(beta, mask) for beta in PAPER_ATTACK_BETAS for mask in cifs.mask_gradients}
    for family in ("pgd50", "cw50", "apgd_ce", "apgd_dlr"):
        assert {(t.beta, t.mask_gradient) for t in of(tasks, family=family, section="adaptive")} == pairs
    assert {t.mask_gradient for t in of(tasks, family="fab_t")} == set(cifs.mask_gradients)
    assert tasks[-1].family == "square"
    assert tasks[-1].attack.num_queries == 5000
    assert len({task.name for task in tasks}) == len(tasks)
    assert [task.x for task in of(tasks, pool="restarts")] == list(range(1, 11))


def test_adaptive_attacks_every_network_equally_often(cifs, make_victim):
    """Nine beta_atk through three mask gradients are 27 runs; with fewer settings there are more starts of each."""
    tasks = make_suite("adaptive", cifs, 0.1)
    pairs = [(beta, mask) for beta in PAPER_ATTACK_BETAS for mask in cifs.mask_gradients]
    for family in ("apgd_ce", "apgd_dlr"):
        found = of(tasks, family=family, section="adaptive")
        assert sorted((str(t.beta), t.mask_gradient) for t in found) == sorted((str(b), mask) for b, mask in pairs)
    assert len(of(tasks, section="paper")) == 4 * 9
    assert (tasks[-1].family, tasks[-1].attack.num_queries) == ("square", 1000)
    plain = make_suite("adaptive", make_victim(num_classes=10, num_probes=0), 0.1)
    one = make_suite("adaptive", cifs, 0.1, mask_gradients=["full"])
    for suite, runs in ((tasks, [18, 2, 2]), (plain, [27, 3, 3]), (one, [27, 3, 3])):
        assert len({task.stream for task in suite}) == len(suite)  # every run has random draws of its own
        by_rank = [len(of(suite, family="apgd_t", section="adaptive", target_rank=rank)) for rank in (2, 3, 4)]
        assert by_rank == runs
        assert len(of(suite, family="apgd_ce", section="adaptive")) == runs[0]


def test_a_network_without_probes_has_one_beta_and_one_gradient(make_victim):
    for suite in SUITES:
        tasks = make_suite(suite, make_victim(num_classes=10, num_probes=0), 0.1)
        assert {(task.beta, task.mask_gradient) for task in tasks} == {(0, "exact")}


def test_fast_aims_where_malt_says(cifs, make_victim):
    """At five classes, at the first two twice; with three there is no targeted DLR loss, but what `standard` has."""
    for norm in ("linf", "l2"):
        tasks = make_suite("fast", cifs, 0.1, norm=norm)
        assert [task.family for task in tasks] == ["", "apgd_ce", *["malt"] * 7]
        assert {(task.attack.norm, task.attack.num_steps) for task in tasks[1:]} == {(norm, 100)}
        assert [task.target_rank for task in of(tasks, family="malt")] == [2, 3, 4, 5, 6, 2, 3]
        assert len({task.stream for task in tasks}) == len(tasks)
    four = make_suite("fast", make_victim(num_classes=4), 0.1)
    assert [task.target_rank for task in of(four, family="malt")] == [2, 3, 4, 2, 3]
    three = make_victim(num_classes=3, num_probes=0)
    assert make_suite("fast", three, 0.1) == make_suite("standard", three, 0.1)


def test_corruptions_need_no_gradient(cifs, make_victim):
    for victim in (cifs, make_victim(has_gradient=False)):
        tasks = make_suite("corruptions", victim, 0.1)
        assert len(of(tasks, section="corruptions")) == 15 * 5
        assert not any(task.counts for task in tasks)
        assert len({task.stream for task in tasks}) == len(tasks)


def test_chance_changes_the_suite(make_victim):
    """Three calls of the network differ: its attacks average over draws, and calls vote."""
    heads = make_victim().heads_fns["detached"]
    victim = make_victim(lambda images: heads(images) + tf.random.normal((1, 2, 2)), num_probes=0)
    tasks = suites.make_suite("standard", victim, 0.1)
    assert [type(task).__name__ for task in tasks[:3]] == ["Voted", "Answered", "Expected"]
    for norm in ("l2", "l1"):
        tasks = suites.make_suite("fast", victim, 0.5, norm=norm)
        assert {task.attack.norm for task in tasks if hasattr(task, "attack")} == {norm}
    assert describe_change("standard", tasks)[0].endswith("took the place of standard.")
    assert describe_change("rand", tasks) == []


@pytest.mark.parametrize(("classes", "second"), [(2, "apgd_margin"), (3, "apgd_dlr"), (4, "apgd_t"), (8, "apgd_t")])
def test_few_classes(classes, second, make_victim):
    victim = make_victim(num_classes=classes, num_probes=0)
    tasks = make_suite("standard", victim, 0.1)
    assert {task.family for task in tasks} & {"apgd_margin", "apgd_dlr", "apgd_t"} == {second}
    assert len(of(tasks, family="fab_t")) == min(9, classes - 1)
    assert bool(describe_missing(victim)) == (classes < 4)
    for suite in ("quick", "adaptive", "strict"):
        losses = {getattr(task.attack, "loss", "") for task in make_suite(suite, victim, 0.1) if task.family}
        assert ("dlr" in losses) == (classes >= 3)
        assert ("targeted_dlr" in losses) == (classes >= 4)


def test_audit_by_option(cifs):
    for suite in SUITES:
        default, with_audit, without = (make_suite(suite, cifs, 0.1, audit=audit) for audit in (None, True, False))
        assert bool(of(with_audit, section="audit")) == (suite not in ("rand", "corruptions"))
        assert not of(without, section="audit")
        assert bool(of(default, section="audit")) == (suite in ("quick", "adaptive", "strict"))


def test_sanity_checks_are_part_of_every_suite(cifs):
    """Once at its beginning, the others at its end; zero gradients and Square once; without an audit none."""
    for suite in SUITES:
        default, without = (suites.make_suite(suite, cifs, 0.1, audit=audit) for audit in (None, False))
        kinds = [type(task).__name__ for task in default]
        checks = of(default, section="sanity")
        assert {"Consistency", "Ranges"} <= set(kinds)
        assert checks == [default[1], *default[1 - len(checks) :]]
        has_attacks = suite != "corruptions"
        assert ("Gradients" in kinds) != ("SampledGradients" in kinds) or not has_attacks
        assert len(of(default, family="square")) == has_attacks
        assert bool(of(default, family="rays")) == has_attacks
        assert not of(without, section="sanity")
        assert not any(task.counts for task in checks)


def test_a_surrogate_makes_transfer_attacks(cifs, make_victim):
    surrogate = make_victim(num_classes=10, num_probes=0)
    assert len(of(make_suite("quick", cifs, 0.1, surrogate=surrogate), family="transfer")) == 2


def test_mask_gradients_by_option(cifs):
    tasks = make_suite("strict", cifs, 0.1, mask_gradients=["full"])
    assert {task.mask_gradient for task in tasks if task.family} == {"full"}
    with pytest.raises(UserError, match="mask_gradients: received smoothed; this model has detached, full"):
        make_suite("strict", cifs, 0.1, mask_gradients=["smoothed"])


def test_apgd_aims_at_three_classes(cifs, make_victim):
    """With ten classes; with three there is no targeted DLR loss."""
    names = ["apgd_ce", *(f"apgd_t, target {rank}" for rank in (2, 3, 4))]
    assert [task.name for task in make_suite("apgd", cifs, 0.1)[1:]] == [f"{name}, beta 0, detached" for name in names]
    three = make_suite("apgd", make_victim(num_classes=3, num_probes=0), 0.1)
    assert [task.family for task in three[1:]] == ["apgd_ce", "apgd_dlr"]
    two = make_suite("apgd", make_victim(num_classes=2, num_probes=0), 0.1)
    assert [task.family for task in two[1:]] == ["apgd_ce", "apgd_margin"]


def test_unknown_suite_and_beta(cifs):
    with pytest.raises(UserError, match="suite: received best"):
        make_suite("best", cifs, 0.1)
    with pytest.raises(UserError, match="attack_betas: received foo"):
        make_suite("paper", cifs, 0.1, betas=["foo"])


def test_attack_names():
    attacks = make_attacks(["fgsm", "pgd100", "cw30"], epsilon=0.3, step_sizes={"pgd100": 0.02})
    assert (attacks["fgsm"].num_steps, attacks["fgsm"].step_size) == (1, 0.3)
    assert (attacks["pgd100"].num_steps, attacks["pgd100"].step_size) == (100, 0.02)
    assert (attacks["cw30"].num_steps, attacks["cw30"].step_size, attacks["cw30"].loss) == (30, 0.03, "cw_margin")
    assert not any(attack.random_start for attack in attacks.values())


@pytest.mark.parametrize("name", ["pgd", "pgd0", "pgd-1", "apgd", "cw", ""])
def test_unknown_attack_is_named(name):
    with pytest.raises(UserError, match="attacks: received " + name):
        make_attacks([name], 0.1)


def test_step_size_of_no_attack_is_refused():
    with pytest.raises(UserError, match="eval_step_sizes: received pdg7"):
        make_attacks(["pgd20"], 0.1, step_sizes={"pdg7": 0.1})
    assert set(make_attacks(["pgd20"], 0.1, step_sizes={"pgd7": 0.1})) == {"pgd20"}


def test_no_attack_and_no_step_are_refused():
    with pytest.raises(UserError, match="attacks: received"):
        make_attacks([], 0.1)
    with pytest.raises(UserError, match="eval_step_sizes: received pgd20: -1"):
        make_attacks(["pgd20"], 0.1, step_sizes={"pgd20": -1})
