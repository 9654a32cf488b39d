"""The suites of attacks, from a first look to the strictest protocol."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cifs_tf.attack_names import NORM_SUITES, SUITES
from cifs_tf.attacks import APGD, DDN, FABT, FMN, MALT, PGD, RayS, Square
from cifs_tf.attacks.ball import NORMS
from cifs_tf.errors import UserError
from cifs_tf.evaluation.chance import Voted, answers_by_chance, expected_referees, rand_tasks
from cifs_tf.evaluation.checks.consistency import FIRST, Answered
from cifs_tf.evaluation.checks.sanity import entrance_tasks, sanity_tasks
from cifs_tf.evaluation.corrupted import corrupted_tasks
from cifs_tf.evaluation.grids import DLR_CLASSES, autoattack_task, grid_tasks, scale_free_attack
from cifs_tf.evaluation.named_attacks import PAPER_ATTACKS, make_attacks
from cifs_tf.evaluation.networks.attacked import AttackedModel
from cifs_tf.evaluation.radii import farthest_radius
from cifs_tf.evaluation.tasks import Crafted, Flips, Gradients, Natural, Nearest, Stability, Task
from cifs_tf.layers import MASK_GRADIENTS
from cifs_tf.losses import PAPER_ATTACK_BETAS, attack_betas_for

MAX_TARGETS, FEW_TARGETS, L1_TARGETS, STARTS = 9, (2, 3, 4), 5, 5
RESTARTS, SHORT_APGD_STEPS = 3, 50
# Targets of the suite `fast`, and those of them that are attacked from a second point too.
MALT_TARGETS, MALT_AGAIN = 5, 2
TARGETED_DLR_CLASSES = 4


def make_suite(
    name: str,
    model: AttackedModel,
    epsilon: float,
    *,
    attacks: Mapping[str, PGD] | None = None,
    betas: Sequence[float | str] = PAPER_ATTACK_BETAS,
    mask_gradients: Sequence[str] | None = None,
    audit: bool | None = None,
    surrogate: AttackedModel | None = None,
    norm: str = "linf",
) -> list[Task]:
    """List the tasks of a suite, in the order in which they are run.

    `quick`: a first look, with a small audit. `paper`: every attack of Section 4.1 at every beta_atk, on all images.
    `paper_aa`: APGD and Square (Appendix B.1). `apgd`: APGD-CE, and APGD-T towards the three nearest classes.
    `fast`: APGD-CE, and APGD-T towards the five classes that MALT puts first. `standard`: AutoAttack's APGD-CE, APGD-T,
    FAB-T and Square. `plus`: with five starts of APGD-CE and APGD-DLR.
    `rand`: the version for networks that answer by chance, which takes the place of any other suite where several calls
    differ. `adaptive`: `paper`, then on the survivors short runs of APGD on three losses at every beta_atk through each
    mask gradient, the small audit and Square. `strict`: `paper`, then on the survivors PGD, C&W and APGD at every
    beta_atk through every mask gradient, restarts, AutoAttack through every mask gradient, and the audit with its
    curves. `minimal`: the smallest distance of a misclassified point, by FMN (in L2 DDN too) at every beta_atk and
    FAB-T towards the three nearest classes, through every mask gradient. `corruptions`: accuracy under the fifteen
    corruptions of CIFAR-10-C, without an attack. A model without a gradient is attacked by Square and RayS, whatever
    the suite.

    Args:
        name: of the suite.
        model: the attacked model: its heads, classes and mask gradients decide what applies.
        epsilon: radius of the ball, above 0; in L-infinity at most 1.
        attacks: of `paper`, `adaptive` and `strict`, see `make_attacks`; None (default) is FGSM, PGD-20, C&W-30 and
            PGD-100.
        betas: the attacker's settings of beta_atk. Default the paper's nine.
        mask_gradients: which to attack through; None (default) is all that the model has.
        audit: whether to look for gradient masking; None (default) in `quick`, `adaptive` and `strict`, and by the
            sanity checks alone in the others; False leaves these out too.
        surrogate: another model, for a transfer attack in the audit.
        norm: `"linf"` (default), or for `standard`, `plus`, `strict`, `minimal`, `fast` and `rand` also `"l2"` or
            `"l1"`; then without the paper's attacks and RayS.

    Returns:
        the tasks.

    Raises:
        UserError: for an unknown suite, a norm that it does not have, or a beta or mask gradient that the model does
            not have.

    Example:
        >>> [task.name for task in make_suite("paper_aa", model, 0.1)]
        ['natural', 'apgd_ce, beta 0, detached', 'square, beta 0, detached']
    """
    if name not in SUITES:
        raise UserError("suite", name, f"give one of {', '.join(SUITES)}")
    if norm not in NORMS or (norm != "linf" and name not in NORM_SUITES):
        raise UserError("norm", norm, f"give one of {', '.join(NORMS)}; suites in l2 and l1: {', '.join(NORM_SUITES)}")
    if epsilon > (farthest := farthest_radius(norm, model.image_shape)):
        advice = f"no two images of this shape are farther apart than {farthest:g} in {norm}, give at most that"
        raise UserError("epsilon", epsilon, advice)
    fitting = attack_betas_for(tuple(betas), model.num_probes)
    masks = _mask_gradients(model, mask_gradients)
    begun = [Answered(name=FIRST)] if audit is not False else []
    if name == "corruptions":
        checks = entrance_tasks(masks, with_gradients=False) if audit is not False else []
        return [Natural(), *begun, *corrupted_tasks(), *checks]
    if not model.has_gradient:
        checks = entrance_tasks(masks, epsilon=epsilon, norm=norm, with_gradients=False) if audit is not False else []
        return [Natural(), *begun, *black_box_tasks(epsilon, masks[0], norm), *checks]
    if name == "rand" or answers_by_chance(model):
        checks = entrance_tasks(masks, epsilon=epsilon, norm=norm, with_gradients=True) if audit is not False else []
        checks += expected_referees(epsilon, masks[0], norm) if audit is not False else []
        return [Voted(), *begun, *rand_tasks(model, epsilon, masks[0], norm), *checks]
    tasks: list[Task] = [Natural(), *begun]
    if name in ("paper", "adaptive", "strict") and norm == "linf":
        tasks += paper_tasks(attacks or make_attacks(PAPER_ATTACKS, epsilon), fitting, masks[0])
    # Every raw prediction by itself, beyond the paper's two.
    single = [f"infinity-{i}" for i in range(1, model.num_probes + 1)]
    every = [*fitting, *(beta for beta in single if beta not in fitting)]
    if name == "adaptive":
        tasks += short_adaptive_tasks(model, epsilon, every, masks)
    if name == "strict":
        tasks += adaptive_tasks(model, epsilon, every, masks, norm)
    if name == "minimal":
        tasks += minimal_tasks(model, epsilon, every, masks, norm)
    if name == "quick":
        tasks += quick_tasks(model, epsilon, fitting, masks)
    if name == "paper_aa":
        tasks += [autoattack_task("apgd_ce", APGD(epsilon=epsilon), masks[0])]
        tasks += [autoattack_task("square", Square(epsilon=epsilon), masks[0])]
    if name == "fast":
        tasks += fast_tasks(model, epsilon, masks[0], norm)
    if name == "apgd":
        tasks += [
            autoattack_task("apgd_ce", APGD(epsilon=epsilon), masks[0]),
            *few_targets_tasks(model, epsilon, masks[0]),
        ]
    standard = [task for mask in masks for task in standard_tasks(model, epsilon, mask, norm, name == "plus")]
    if name in ("standard", "plus"):
        tasks += [task for task in standard if task.mask_gradient == masks[0]]
    if name == "strict":
        tasks += [task for task in standard if task.family != "square"]
    if audit or (audit is None and name in ("quick", "adaptive", "strict")):
        tasks += audit_tasks(model, epsilon, masks, surrogate=surrogate, thorough=name == "strict", norm=norm)
    if name == "strict":
        # Last, on the survivors of every attack with gradients; it reads logits only, so it needs no mask gradient.
        tasks += [task for task in standard if task.family == "square" and task.mask_gradient == masks[0]]
    if audit is not False:
        has_audit = any(task.section == "audit" for task in tasks)
        has_square = any(task.family == "square" for task in tasks)
        # Of the suites that take hours anyway.
        has_features = name in ("adaptive", "strict") and masks[0] in model.answers_fns
        tasks += sanity_tasks(
            epsilon,
            masks,
            model.image_shape,
            norm=norm,
            with_gradients=not has_audit,
            with_square=not has_square,
            with_features=has_features,
        )
    return _first_of_each_name(tasks)


def paper_tasks(attacks: Mapping[str, PGD], betas: Sequence[float | str], mask_gradient: str) -> list[Task]:
    """List the protocol of Section 4.1: every attack at every beta_atk on all images, last iterate (Table B.3)."""
    return grid_tasks(attacks, [mask_gradient], betas, section="paper", on="all")


def standard_tasks(
    model: AttackedModel, epsilon: float, mask_gradient: str, norm: str = "linf", plus: bool = False
) -> list[Task]:
    """List AutoAttack's standard version: APGD-CE, APGD-T, FAB-T and Square, with its budgets.

    Each target is a task of its own, so that what one target broke is not attacked towards the next. With fewer than
    four classes there is no targeted DLR loss: the untargeted one takes its place, with two the margin. In L1 APGD-CE
    starts five times, and APGD-T has five targets. `plus` has five starts of APGD-CE and APGD-DLR in every norm.
    """
    ce = APGD(epsilon=epsilon, norm=norm)
    starts = range(1, (STARTS if plus or norm == "l1" else 1) + 1)
    tasks: list[Task] = [autoattack_task("apgd_ce", ce, mask_gradient, start=start) for start in starts]
    if plus and model.num_classes >= TARGETED_DLR_CLASSES:
        dlr = APGD(epsilon=epsilon, norm=norm, loss="dlr")
        tasks += [autoattack_task("apgd_dlr", dlr, mask_gradient, start=start) for start in starts]
    ranks = range(2, min(MAX_TARGETS, model.num_classes - 1) + 2)
    if model.num_classes >= TARGETED_DLR_CLASSES:
        attack = APGD(epsilon=epsilon, norm=norm, loss="targeted_dlr")
        nearest = ranks[:L1_TARGETS] if norm == "l1" else ranks
        tasks += [autoattack_task("apgd_t", attack, mask_gradient, target_rank=rank) for rank in nearest]
    else:
        second = scale_free_attack(model.num_classes, epsilon, norm=norm)
        tasks += [autoattack_task(family, attack, mask_gradient) for family, attack in second.items()]
    fab = FABT(epsilon=epsilon, norm=norm)
    tasks += [autoattack_task("fab_t", fab, mask_gradient, target_rank=rank) for rank in ranks]
    return [*tasks, autoattack_task("square", Square(epsilon=epsilon, norm=norm), mask_gradient)]


def black_box_tasks(epsilon: float, mask_gradient: str, norm: str = "linf") -> list[Task]:
    """List what attacks a network without a gradient: Square by its logits, in L-infinity RayS by its decisions."""
    attacks: dict[str, Any] = {"square": Square(epsilon=epsilon, norm=norm)}
    if norm == "linf":
        attacks["rays"] = RayS(epsilon=epsilon)
    return grid_tasks(attacks, [mask_gradient], [0], section="black box", on="standing")


def adaptive_tasks(
    model: AttackedModel,
    epsilon: float,
    betas: Sequence[float | str],
    mask_gradients: Sequence[str],
    norm: str = "linf",
) -> list[Task]:
    """List every head weighting through every mask gradient, on the survivors: PGD with restarts, C&W and APGD."""
    steps = {"epsilon": epsilon, "norm": norm, "step_size": epsilon / 10, "num_steps": 50}
    steps |= {"random_start": True, "keep": "fooling"}
    attacks: dict[str, PGD | APGD] = {
        "pgd50": PGD(**steps, num_restarts=RESTARTS),  # type: ignore[arg-type]
        "cw50": PGD(**steps, loss="cw_margin"),  # type: ignore[arg-type]
        "apgd_ce": APGD(epsilon=epsilon, norm=norm),
        **scale_free_attack(model.num_classes, epsilon, norm=norm),
    }
    return grid_tasks(attacks, mask_gradients, betas, section="adaptive", on="standing", suffix=", random start")


def short_adaptive_tasks(
    model: AttackedModel, epsilon: float, betas: Sequence[float | str], mask_gradients: Sequence[str]
) -> list[Task]:
    """List every head weighting through every mask gradient on a budget, on the survivors: APGD of 50 steps.

    On the cross-entropy, DLR (of two classes the margin), and towards the nearest class; towards the two next ones at
    beta_atk 0. Every run starts at a random point of its own. Fewer settings, such as the one of a network without
    selection layers, are repeated from other points until there are as many runs as with two selection layers: networks
    are compared under as many.
    """
    few = range(max(1, len(MASK_GRADIENTS) // len(mask_gradients)))
    starts = range(max(1, len(PAPER_ATTACK_BETAS) * len(MASK_GRADIENTS) // (len(betas) * len(mask_gradients))))
    attacks: dict[str, APGD] = {
        "apgd_ce": APGD(epsilon=epsilon, num_steps=SHORT_APGD_STEPS),
        **scale_free_attack(model.num_classes, epsilon, num_steps=SHORT_APGD_STEPS),
    }
    ranks = FEW_TARGETS if model.num_classes >= TARGETED_DLR_CLASSES else ()
    targeted = APGD(epsilon=epsilon, loss="targeted_dlr", num_steps=SHORT_APGD_STEPS)

    def grid(attacks: Mapping[str, Any], betas: Sequence[float | str], start: int, rank: int = 2) -> list[Task]:
        suffix = f", start {start + 1}"
        return grid_tasks(
            attacks, mask_gradients, betas, section="adaptive", on="standing", suffix=suffix, target_rank=rank
        )

    tasks = [task for start in starts for task in grid(attacks, betas, start)]
    for rank in ranks:
        chosen, runs = (betas, starts) if rank == FEW_TARGETS[0] else ([0], few)
        tasks += [task for start in runs for task in grid({"apgd_t": targeted}, chosen, start, rank)]
    return tasks


def minimal_tasks(
    model: AttackedModel,
    epsilon: float,
    betas: Sequence[float | str],
    mask_gradients: Sequence[str],
    norm: str = "linf",
) -> list[Task]:
    """List minimal-norm attacks through every mask gradient: FMN and DDN at every beta_atk, FAB-T to three classes."""
    attacks: dict[str, Any] = {"fmn": FMN(epsilon=epsilon, norm=norm)}
    if norm == "l2":
        attacks["ddn"] = DDN(epsilon=epsilon)
    fields: dict[str, Any] = {"section": "minimal", "on": "correct", "kind": Nearest}
    tasks = grid_tasks(attacks, mask_gradients, betas, **fields)
    fab = {"fab_t": FABT(epsilon=epsilon, norm=norm)}
    ranks = [rank for rank in FEW_TARGETS if rank <= model.num_classes]
    return [
        *tasks,
        *(task for rank in ranks for task in grid_tasks(fab, mask_gradients, [0], **fields, target_rank=rank)),
    ]


def quick_tasks(
    model: AttackedModel, epsilon: float, betas: Sequence[float | str], mask_gradients: Sequence[str]
) -> list[Task]:
    """List FGSM and PGD-20 at a few beta_atk, and APGD, towards the three nearest classes too."""
    few = [beta for beta in (0, 2, "infinity") if beta in betas] or list(betas)[:1]
    tasks = paper_tasks(make_attacks(["fgsm", "pgd20"], epsilon), few, mask_gradients[0])
    tasks += [autoattack_task("apgd_ce", APGD(epsilon=epsilon), mask) for mask in mask_gradients[:2]]
    for family, attack in scale_free_attack(model.num_classes, epsilon).items():
        tasks += [autoattack_task(family, attack, mask) for mask in mask_gradients[:2]]
    return [*tasks, *few_targets_tasks(model, epsilon, mask_gradients[0])]


def fast_tasks(model: AttackedModel, epsilon: float, mask_gradient: str, norm: str = "linf") -> list[Task]:
    """List APGD-CE, and APGD-T towards MALT's nearest classes; with fewer than four classes what `standard` has."""
    if model.num_classes < TARGETED_DLR_CLASSES:
        return standard_tasks(model, epsilon, mask_gradient, norm)
    tasks = [autoattack_task("apgd_ce", APGD(epsilon=epsilon, norm=norm), mask_gradient)]
    malt = MALT(epsilon=epsilon, norm=norm)
    ranks = range(2, min(MALT_TARGETS, model.num_classes - 1) + 2)
    runs = [*((rank, 1) for rank in ranks), *((rank, 2) for rank in ranks[:MALT_AGAIN])]
    return [
        *tasks,
        *(autoattack_task("malt", malt, mask_gradient, target_rank=rank, start=start) for rank, start in runs),
    ]


def few_targets_tasks(model: AttackedModel, epsilon: float, mask_gradient: str) -> list[Task]:
    """List APGD-T towards the three nearest classes; of fewer than four, see `standard_tasks`."""
    if model.num_classes < TARGETED_DLR_CLASSES:
        second = scale_free_attack(model.num_classes, epsilon)
        return [autoattack_task(family, attack, mask_gradient) for family, attack in second.items()]
    attack = APGD(epsilon=epsilon, loss="targeted_dlr")
    return [autoattack_task("apgd_t", attack, mask_gradient, target_rank=rank) for rank in FEW_TARGETS]


def audit_tasks(
    model: AttackedModel,
    epsilon: float,
    mask_gradients: Sequence[str],
    *,
    surrogate: AttackedModel | None = None,
    thorough: bool = False,
    norm: str = "linf",
) -> list[Task]:
    """List what `cifs_tf.evaluation.checks.audit` needs to tell robustness from hidden gradients.

    The curves are cumulative: a larger budget is spent on the survivors of the smaller ones.
    """
    first = mask_gradients[0]

    def crafted(name: str, attack: PGD | APGD | Square, **fields: object) -> Task:
        fields = {"family": name.partition(",")[0], "section": "audit", "mask_gradient": first, **fields}
        return Crafted(name=name, attack=attack, **fields)  # type: ignore[arg-type]

    def pgd(num_steps: int, **fields: object) -> PGD:
        step_size = max(epsilon / 10, 2.5 * epsilon / num_steps) if num_steps > 1 else epsilon
        ball = {"epsilon": epsilon, "norm": norm, **fields}
        return PGD(step_size=step_size, num_steps=num_steps, keep="fooling", **ball)  # type: ignore[arg-type]

    tasks: list[Task] = [Stability()]
    tasks += [Gradients(name=f"gradients, {mask}", mask_gradient=mask) for mask in mask_gradients]
    for name, attack in make_attacks(["fgsm", "pgd20"], epsilon, norm=norm).items():
        tasks.append(crafted(f"{name}, alone", attack, on="correct", pool=name, counts=True))
    for num_steps in (1, 5, 10, 20, 50, 100, 200) if thorough else (1, 5, 10, 20, 40):
        tasks.append(
            crafted(f"steps, {num_steps}", pgd(num_steps), pool="steps", x=num_steps, counts=True, section="curves")
        )
    for restart in range(1, (10 if thorough else 4) + 1):
        attack = pgd(20, random_start=True)
        tasks.append(crafted(f"restarts, {restart}", attack, pool="restarts", x=restart, counts=True, section="curves"))
    shares = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0) if thorough else (0.5, 1.0, 2.0)
    farthest = farthest_radius(norm, model.image_shape)
    radii = [epsilon * share for share in shares if epsilon * share < farthest]
    for radius in [*radii, farthest]:
        second = scale_free_attack(model.num_classes, radius, norm=norm, num_steps=50)
        for apgd in (APGD(epsilon=radius, norm=norm, num_steps=50), *second.values()):
            counts = radius <= epsilon
            name = f"epsilon, {radius:.4g}, {apgd.loss}"
            tasks.append(crafted(name, apgd, pool="epsilon", x=radius, counts=counts, section="curves"))
    for mask in mask_gradients if len(mask_gradients) > 1 else ():
        for beta in attack_betas_for((0, 2, "infinity"), model.num_probes):
            name = f"mask {mask}, beta {beta}"
            apgd = APGD(epsilon=epsilon, norm=norm, num_steps=100 if thorough else 20)
            tasks.append(
                crafted(name, apgd, pool=f"mask {mask}", beta=beta, mask_gradient=mask, counts=True, family="mask")
            )
    if model.num_probes:
        attack = make_attacks(["pgd20"], epsilon, norm=norm)["pgd20"]
        tasks.append(Flips(name="flips", family="flips", attack=attack, mask_gradient=first))
    if surrogate is not None:
        for loss in ("cross_entropy", "cw_margin"):
            attack = PGD(epsilon=epsilon, norm=norm, step_size=epsilon / 10, num_steps=50, loss=loss)
            theirs = surrogate.mask_gradients[0]
            tasks.append(
                Crafted(
                    name=f"transfer, {loss}",
                    counts=True,
                    section="audit",
                    family="transfer",
                    attack=attack,
                    mask_gradient=theirs,
                    surrogate=surrogate,
                )
            )
    square = Square(epsilon=epsilon, norm=norm, num_queries=5000 if thorough else 1000)
    # Last, on the survivors of all white-box attacks; in a suite with AutoAttack it is there already.
    return [*tasks, autoattack_task("square", square, first)]


def describe_missing(model: AttackedModel) -> list[str]:
    """Return sentences on attacks that the number of classes rules out."""
    if model.num_classes >= TARGETED_DLR_CLASSES:
        return []
    instead = "the untargeted one" if model.num_classes >= DLR_CLASSES else "the margin"
    return [f"The targeted DLR loss needs four classes: {instead} took its place. The network has {model.num_classes}."]


def _mask_gradients(model: AttackedModel, wanted: Sequence[str] | None) -> tuple[str, ...]:
    if wanted is None or model.num_probes == 0:
        return model.mask_gradients
    for mask in wanted:
        if mask not in model.mask_gradients:
            raise UserError("mask_gradients", mask, f"this model has {', '.join(model.mask_gradients)}")
    if not wanted:
        raise UserError("mask_gradients", list(wanted), f"give some of {', '.join(model.mask_gradients)}")
    return tuple(wanted)


def _first_of_each_name(tasks: Iterable[Task]) -> list[Task]:
    found: dict[str, Task] = {}
    for task in tasks:
        found.setdefault(task.name, task)
    return list(found.values())
