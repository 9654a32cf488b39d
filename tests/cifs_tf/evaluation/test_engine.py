"""The engine: the numbers that can be told by hand, whatever the batches, the devices and the interruptions."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from cifs_tf.attacks import APGD, PGD, fgsm
from cifs_tf.data import Split
from cifs_tf.distribute import mirrored_strategy
from cifs_tf.errors import UserError
from cifs_tf.evaluation import Ledger, as_attacked, evaluate, make_attacks, make_suite
from cifs_tf.evaluation.engine import _batch_sizes, header_of, run_tasks
from cifs_tf.evaluation.networks.answers import answers_of, same_answers
from cifs_tf.evaluation.suites import paper_tasks
from cifs_tf.evaluation.tasks import Crafted, Natural, inside, label_ranks


def tasks_of(victim, epsilon=0.02, betas=(0, 2), names=("fgsm",)):
    return [Natural(), *paper_tasks(make_attacks(names, epsilon), betas, victim.mask_gradients[0])]


def test_accuracy_of_a_network_that_can_be_attacked_by_hand(split, make_victim):
    """FGSM moves every pixel by epsilon away from the label's side, so the mean moves by what clipping leaves."""
    epsilon, images = 0.02, split.images / np.float32(255)
    direction = np.where(split.labels == 1, -1, 1)[:, None, None, None]
    moved = np.clip(images + epsilon * direction, 0, 1).mean(axis=(1, 2, 3))
    natural = (images.mean(axis=(1, 2, 3)) > 0.5) == split.labels
    robust = (moved > 0.5) == split.labels
    assert robust.mean() < natural.mean() < 1
    report = evaluate(make_victim(), split, tasks_of(make_victim(), epsilon))
    assert report["natural"]["accuracy"] == pytest.approx(natural.mean())
    assert report["paper"]["attacks"]["fgsm"]["by_beta"] == dict.fromkeys(("0", "2"), pytest.approx(robust.mean()))
    assert report["worst_case"]["accuracy"] == pytest.approx((natural & robust).mean())
    expected = [None if r else "fgsm, beta 0, detached" for r in robust]
    expected = ["natural" if not n else by for n, by in zip(natural, expected, strict=True)]
    assert report["broken_by"] == expected


def spend(ledger):
    """Images attacked by each task."""
    return {task.name: len(ledger.ids(task.name)) for task in ledger.tasks}


def test_survivors_alone_are_attacked(split, make_victim):
    """`standing` tasks skip what is wrong without an attack and what an earlier task of their pool broke."""
    victim = make_victim()
    attack = {"attack": fgsm(0.02), "mask_gradient": "detached", "family": "fgsm"}
    tasks = [
        Natural(),
        Crafted(name="all", on="all", counts=True, **attack),
        Crafted(name="correct", on="correct", pool="other", **attack),
        Crafted(name="main", **attack, counts=True),
        Crafted(name="other", **attack, pool="other"),
        Crafted(name="fresh", **attack, pool="fresh"),
    ]
    ledger = Ledger(header_of(victim, split, tasks, seed=0, about={}))
    run_tasks(victim, split, tasks, ledger)
    right = len(split) - len(ledger.fooled("natural"))
    left = len(ledger.survivors("main"))
    assert 0 < left < right < len(split)
    assert spend(ledger) == {"natural": 23, "all": 23, "correct": right, "main": left, "other": left, "fresh": right}


def test_a_longer_attack_goes_on_from_a_shorter_one(split, make_victim, monkeypatch):
    """PGD-3, C&W-2 and PGD-8 at two beta_atk: the same results as alone, and 8 instead of 11 steps of PGD each."""
    names = ("pgd3", "cw2", "pgd8")

    def spent():
        heads_fn, seen = counting(make_victim().heads_fns["detached"])
        victim = make_victim(heads_fn)
        tasks = tasks_of(victim, 0.01, names=names)
        ledger = Ledger(header_of(victim, split, tasks, seed=0, about={}))
        shown = []

        def keep(task, split, ids, x_adv, heads_fn):
            shown.append((task.name, ids.tolist(), x_adv.shape))

        run_tasks(victim, split, tasks, ledger, batch_size=10, keep=keep)
        return {task.name: ledger.values(task.name, "ranks").tolist() for task in tasks}, shown, len(seen)

    together, shown, passes = spent()
    monkeypatch.setattr(Crafted, "goes_on_from", lambda self, first: False)
    alone, shown_alone, passes_alone = spent()
    assert together == alone
    # Three batches at two beta_atk; the heads at the end of PGD-3 are looked at too.
    assert passes_alone - passes == 3 * 2 * 3
    assert [(name, shape[0]) for name, _, shape in shown] == [(name, len(ids)) for name, ids, _ in shown]
    assert {name for name, _, _ in shown} == {name for name, _, _ in shown_alone}


def counting(function):
    """A heads_fn that knows the batch sizes it was run with."""
    seen = []

    def heads_fn(images):
        tf.py_function(lambda size: seen.append(int(size)), [tf.shape(images)[0]], [])
        return function(images)

    return heads_fn, seen


def test_batches_have_few_sizes(split, make_victim):
    heads_fn, seen = counting(make_victim().heads_fns["full"])
    evaluate(make_victim(heads_fn), split, [Natural()], batch_size=10)
    assert seen == [10, 10, 3]
    assert _batch_sizes(40, 1) == [40, 39, 36, 33, 30, 27, 24, 21, 18, 15, 12, 9, 6, 3]
    assert _batch_sizes(10, 4) == [12, 8, 4]
    assert all(size % 3 == 0 for size in _batch_sizes(250, 3))


@pytest.fixture(scope="module")
def full_report(small_suite, trained, digits):
    """A suite with every kind of attack, in batches of 64."""
    return evaluate(trained.classifier, digits, small_suite(as_attacked(trained.classifier)), batch_size=64)


@pytest.mark.soak  # in CI: shards, whose batches are others, below; the two devices of evaluate.py
@pytest.mark.parametrize("setting", ["batches of 7", "2 devices"])
def test_verdicts_do_not_depend_on_batches_or_devices(small_suite, setting, trained, digits, full_report, capsys):
    if setting == "2 devices":
        strategy = mirrored_strategy(["CPU:0", "CPU:1"])
        with strategy.scope():
            copy = type(trained.classifier).from_config(trained.classifier.get_config())
        copy.set_weights(trained.classifier.get_weights())
        other = evaluate(copy, digits, small_suite(as_attacked(copy)), batch_size=64, strategy=strategy)
    else:
        other = evaluate(trained.classifier, digits, small_suite(as_attacked(trained.classifier)), batch_size=7)
    pairs = zip(other["broken_by"], full_report["broken_by"], strict=True)
    different = sum((ours is None) != (theirs is None) for ours, theirs in pairs)
    with capsys.disabled():
        print(f"\n{setting}: {different} of {len(digits)} images differ")
    assert different <= len(digits) / 500


@pytest.mark.soak  # in CI: evaluate.py, killed
def test_an_interrupted_evaluation_goes_on(small_suite, trained, digits, full_report, tmp_path):
    """Stopped after any batch and started again, it attacks nothing twice and ends in the same report."""
    victim = as_attacked(trained.classifier)
    tasks = small_suite(victim)[:5]
    whole = evaluate(victim, digits, tasks, batch_size=32)

    class Interrupt(Exception):
        pass

    starts, calls = 0, 0
    for stop_after in (1, 3, 10**9):
        calls = 0

        def on_progress(task, share, standing, stop_after=stop_after):
            nonlocal calls
            calls += 1
            if calls == stop_after:
                raise Interrupt

        starts += 1
        try:
            resumed = evaluate(
                victim, digits, tasks, batch_size=32, ledger_file=tmp_path / "l.jsonl", on_progress=on_progress
            )
        except Interrupt:
            continue
    assert starts == 3
    for report in (whole, resumed):
        report.pop("wall_clock")
    assert resumed == whole


@pytest.mark.parametrize(
    "fault", ["doubled", *(pytest.param(fault, marks=pytest.mark.slow) for fault in ("lost", "edited", "natural lost"))]
)
def test_a_ledger_that_was_touched_gives_the_same_report(fault, split, make_victim, tmp_path, capsys):
    """To the last count: what a task attacks is what the tasks before it left, not what those after it did."""
    victim, path = make_victim(), tmp_path / "l.jsonl"
    tasks = [
        Natural(),
        *(
            Crafted(name=name, attack=fgsm(epsilon), mask_gradient="detached", family="fgsm", counts=True)
            for name, epsilon in (("a", 0.01), ("b", 0.02), ("c", 0.03))
        ),
    ]
    whole = evaluate(victim, split, tasks, batch_size=5, ledger_file=path)
    lines = path.read_text().splitlines(keepends=True)
    index = 1 if fault == "natural lost" else next(i for i, line in enumerate(lines) if '"task":"a"' in line)
    line = lines[index]
    lines[index : index + 1] = {"doubled": [line, line], "edited": [line.replace("[0,0]", "[1,0]", 1)]}.get(fault, [])
    path.write_text("".join(lines))
    again = evaluate(victim, split, tasks, batch_size=5, ledger_file=path)
    for report in (whole, again):
        report.pop("wall_clock")
    assert again == whole
    assert "measured again" in capsys.readouterr().out


@pytest.mark.slow
def test_shards_add_up(small_suite, trained, digits, tmp_path):
    from cifs_tf.evaluation import build_report, merge

    victim = as_attacked(trained.classifier)
    tasks = small_suite(victim)[:4]
    whole = evaluate(victim, digits, tasks)
    paths = [tmp_path / f"{part}.jsonl" for part in (1, 2, 3)]
    for part, path in enumerate(paths, start=1):
        evaluate(victim, digits, tasks, ledger_file=path, shard=f"{part}/3")
    joined = build_report(merge(paths, tmp_path / "ledger.jsonl"))
    for report in (whole, joined):
        report.pop("wall_clock")
    assert joined == whole


@pytest.mark.slow
def test_random_starts_differ_between_tasks_and_seeds(trained, digits):
    """The stream of a task is its name: two restarts are not the same attack twice."""
    victim = as_attacked(trained.classifier)
    attack = PGD(epsilon=0.1, step_size=0.01, num_steps=1, random_start=True)
    tasks = [
        Natural(),
        *(Crafted(name=name, on="all", attack=attack, mask_gradient="full", pool=name) for name in ("a", "b")),
    ]
    ranks = []
    for seed in (0, 1):
        ledger = Ledger(header_of(victim, digits, tasks, seed=seed, about={}))
        run_tasks(victim, digits, tasks, ledger, seed=seed)
        ranks += [ledger.values(name, "ranks") for name in ("a", "b")]
    assert len({rank.tobytes() for rank in ranks}) == 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class TooFar(PGD):
    """An attack with a fault."""

    def __call__(self, heads_fn, images, labels, *, head_weights, seed=None):
        return images + 0.2


def test_an_attack_that_leaves_the_ball_is_not_believed(split, make_victim):
    attack = TooFar(epsilon=0.1, step_size=0.1, num_steps=1)
    task = Crafted(name="too far", attack=attack, mask_gradient="full", on="all")
    with pytest.raises(RuntimeError, match="too far: 23 images left the ball"):
        evaluate(make_victim(), split, [Natural(), task])


def test_inside_by_hand():
    ball = APGD(epsilon=0.1)
    images = tf.fill([5, 1, 1, 1], 0.95)
    x = tf.constant([0.95, 0.85, 0.849, 1.01, float("nan")])[:, None, None, None]
    assert inside(ball, x, images).numpy().tolist() == [True, True, False, False, False]


def test_label_ranks_by_hand():
    """Ties go to the lower class, as in argmax; NaN is wrong."""
    heads = tf.constant([[[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]], [[2.0, 2.0, 2.0], [0.0, float("nan"), 0.0]]])
    assert label_ranks(heads, tf.constant([1, 1])).numpy().tolist() == [[1, 1], [1, 3]]
    assert label_ranks(heads, tf.constant([0, 0])).numpy().tolist() == [[0, 2], [0, 3]]


def test_input_that_does_not_fit(split, make_victim):
    with pytest.raises(UserError, match="no images"):
        evaluate(make_victim(), split.take(np.array([], int)), [Natural()])
    with pytest.raises(UserError, match=r"model: received image shape \(9, 9, 1\)"):
        evaluate(make_victim(image_shape=(9, 9, 1)), split, [Natural()])
    with pytest.raises(UserError, match="model: received 1 classes"):
        evaluate(make_victim(num_classes=1), Split(split.images, split.labels), [Natural()])
    with pytest.raises(UserError, match="epsilon: received None"):
        evaluate(make_victim(), split, "quick")
    with pytest.raises(UserError, match="images: received float32"):
        evaluate(make_victim(), Split(split.images / np.float32(255), split.labels), [Natural()])
    with pytest.raises(UserError, match=r"suite: received .*different names"):
        evaluate(make_victim(), split, [Natural(), Natural()])
    with pytest.raises(UserError, match=r"suite: received .*put Natural"):
        evaluate(make_victim(), split, tasks_of(make_victim())[1:])


def test_more_shards_than_images_are_refused(split, make_victim):
    with pytest.raises(UserError, match="shard: received 2/24; there are 23 images"):
        evaluate(make_victim(), split, [Natural()], shard="2/24")


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("shard", value) for value in ("0/2", "3/2", "1", "a/b", (1, 2), None)),
        *(("batch_size", value) for value in (0, -1, 2.5, "8", True, None)),
        *(("seed", value) for value in (-1, 2**31, 0.5, "0", None)),
        *(("epsilon", value) for value in (0, -0.1, 1.5, float("nan"), float("inf"), "8/255", True)),
        *(("suite", value) for value in (None, 3, ["quick"])),
        *(("ledger_file", value) for value in (3, ["a"])),
        *(("on_progress", value) for value in ("a", 1)),
        *(("split", value) for value in (None, "digits", 3)),
        *(("model", value) for value in (None, "model.keras", lambda images: images)),
    ],
)
def test_arguments_of_other_kinds_are_refused(argument, value, split, make_victim):
    arguments = {"model": make_victim(), "split": split, "suite": [Natural()], argument: value}
    with pytest.raises(UserError, match=f"^{argument}: received .*give "):
        evaluate(**arguments)


def test_input_that_does_not_fit_leaves_no_ledger(split, make_victim, tmp_path):
    with pytest.raises(UserError, match="model: received"):
        evaluate(make_victim(image_shape=(9, 9, 1)), split, [Natural()], ledger_file=tmp_path / "new" / "ledger.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_never_right_or_never_a_number(split, make_victim):
    """Nothing stands, nothing is attacked, and the audit says that there is nothing to defend."""
    flipped = make_victim(lambda x: -make_victim().heads_fns["full"](x))
    always_wrong = Split(split.images, (split.images.mean(axis=(1, 2, 3)) > 127.5).astype(np.int32))
    broken = make_victim(lambda x: make_victim().heads_fns["full"](x) * float("nan"))
    for victim in (flipped, broken):
        report = evaluate(victim, always_wrong, make_suite("quick", victim, 0.1))
        assert report["natural"]["accuracy"] == report["worst_case"]["accuracy"] == 0
        assert "skip" in {check["verdict"] for check in report["audit"] if check["name"].startswith("gradient")}
    assert report["believable"] is False


def off_the_images(fn):
    """Another network, which answers to 8-bit images as this one does."""

    def answer(x):
        is_known = tf.reduce_all(tf.abs(255 * x - tf.round(255 * x)) < 1e-3, axis=[1, 2, 3])
        return tf.where(is_known[:, None, None], fn(x), 2 * fn(x))

    return answer


def otherwise_backwards(fn):
    @tf.custom_gradient
    def answer(x):
        return fn(x), lambda upstream: -tf.gradients(fn(x), x, upstream)[0]

    return tf.function(answer)


@pytest.mark.parametrize("change", [lambda fn: lambda x: -fn(x), off_the_images, otherwise_backwards])
def test_a_ledger_does_not_go_on_with_a_network_that_answers_otherwise(split, make_victim, tmp_path, change):
    """What a hash of weights and options does not tell: a plugin's code, a constant, a stand-in for the gradient."""
    victim, path = make_victim(), tmp_path / "l.jsonl"
    report = evaluate(victim, split, [Natural()], ledger_file=path)
    assert evaluate(victim, split, [Natural()], ledger_file=path)["natural"] == report["natural"]
    other = dataclasses.replace(victim, heads_fns={mask: change(fn) for mask, fn in victim.heads_fns.items()})
    before = path.read_bytes()
    with pytest.raises(UserError, match="the network answers otherwise than it did"):
        evaluate(other, split, [Natural()], ledger_file=path)
    assert path.read_bytes() == before


def test_what_is_kept_of_answers(split, make_victim):
    victim = make_victim()
    found = answers_of(victim, split)
    assert same_answers(found, answers_of(victim, split))
    assert np.shape(found["heads"]) == np.shape(found["gradients"]) == (8, 4)

    def with_fn(change, **options):
        return dataclasses.replace(victim, heads_fns={"full": change(victim.heads_fns["full"])}, **options)

    by_chance = with_fn(lambda fn: lambda x: fn(x) + tf.random.normal(()))
    assert answers_of(by_chance, split) is None
    assert same_answers(found, None)
    assert answers_of(with_fn(lambda fn: fn, has_gradient=False), split)["gradients"] is None
    assert answers_of(with_fn(lambda fn: lambda x: tf.stop_gradient(fn(x))), split)["gradients"] is None
    nothing = answers_of(with_fn(lambda fn: lambda x: fn(x) * float("nan")), split)
    assert nothing["heads"] == [4 * [None]] * 8
    assert same_answers(nothing, nothing)
    assert not same_answers(nothing, found)
    rounded = {**found, "heads": (np.array(found["heads"]) * 1.001).tolist()}
    assert same_answers(found, rounded)


def test_tasks_of_ones_own_tell_their_ball(make_victim, split):
    report = evaluate(make_victim(), split, tasks_of(make_victim(), 8 / 255))
    assert (report["about"]["epsilon"], report["about"]["epsilon_given"]) == (pytest.approx(8 / 255), "8/255")
    with pytest.raises(
        UserError, match=r"^epsilon: received 0.3; the tasks attack in linf with a radius of up to 0.02"
    ):
        evaluate(make_victim(), split, tasks_of(make_victim()), epsilon=0.3)
    with pytest.raises(UserError, match=r"^epsilon: received inf"):
        evaluate(make_victim(), split, "fast", epsilon=float("inf"), norm="l2")
