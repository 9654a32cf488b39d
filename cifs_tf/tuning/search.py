"""A search from its options to its results, alone or as the chief or a worker of several processes."""

import contextlib
import subprocess
import time
from collections.abc import Iterator, Sequence

import grpc
from rich.console import Console

from cifs_tf.command_line import command
from cifs_tf.data import ImageDataset
from cifs_tf.errors import UserError
from cifs_tf.files import now, print_written, read_results, write_results
from cifs_tf.runs.cluster import Cluster, count_workers, make_cluster
from cifs_tf.runs.image_table import describe_images, show_images
from cifs_tf.runs.images import check_recorded_images, load_training_images, record_images
from cifs_tf.runs.keys import warn
from cifs_tf.runs.precision import resolve_auto
from cifs_tf.runs.provenance import describe
from cifs_tf.runs.workdir import Workdir
from cifs_tf.tuning import report
from cifs_tf.tuning.options import OBJECTIVE, SearchConfig
from cifs_tf.tuning.oracle import Resumable
from cifs_tf.tuning.trials import SearchTuner, check, describe_space_to_tensorboard
from cifs_tf.tuning.workers import PREFIX, Role, Workers, end_with_launcher, serving

# Made of the trials once they are over, before result.json.
RESULTS = ("best.yaml", "accuracy.png")
POLL_SECONDS = 1.0
# For a worker that knows that the search is over. One that only begins would wait for the chief, which has ended.
LAST_SECONDS = 10


def search(config: SearchConfig, workdir: Workdir, argv: Sequence[str] = ()) -> None:
    """Carry out a search, or what is left of it, alone or as the chief or a worker of several processes.

    Raises:
        UserError: for input that does not fit, when nothing has been written, or if no trial was completed.
    """
    if config.machine.strategy == "multiworker" or count_workers() > 1:
        advice = "the workers of a search are others: give --workers, and unset TF_CONFIG"
        raise UserError("--strategy", config.machine.strategy, advice)
    cluster = make_cluster(config.machine)
    config = resolve_auto(config, workdir, cluster)
    workdir.check(config)
    if _is_finished(config, workdir):
        _show(config, workdir)
        return
    role = Role.from_environment()
    end_with_launcher()
    dataset = load_training_images(config.data, workdir)
    check(config, dataset, cluster)
    if role.kind == "worker":
        _search_as_worker(config, dataset, workdir, cluster, role)
        return
    with workdir.open(config):
        record_images(dataset, workdir, config.train.warm_start)
        show_images(dataset, Console())
        describe_space_to_tensorboard(config, workdir)
        if role.kind == "alone" and config.search.workers is None:
            oracle = _search_alone(config, dataset, workdir, cluster, role)
        else:
            oracle = _search_as_chief(config, dataset, workdir, cluster, role, argv)
        _write(oracle, config, dataset, workdir, argv)
    _show(config, workdir)


def _search_alone(
    config: SearchConfig, dataset: ImageDataset, workdir: Workdir, cluster: Cluster, role: Role
) -> Resumable:
    workers = Workers(workdir)
    if alive := workers.alive():
        advice = f"{', '.join(alive)} of an earlier command is still at work there; end it, or start the chief again"
        raise UserError("--workdir", workdir.path, advice)
    with workers.hold(role.name):
        tuner = SearchTuner(config, dataset, workdir, cluster)
        tuner.oracle.is_alive, tuner.oracle.announce = workers.is_alive, _announce
        tuner.search()
    return tuner.oracle


def _search_as_worker(
    config: SearchConfig, dataset: ImageDataset, workdir: Workdir, cluster: Cluster, role: Role
) -> None:
    with Workers(workdir).hold(role.name):
        tuner = SearchTuner(config, dataset, workdir, cluster)
        _announce(f"{role.name} asks the chief at {role.address}")
        try:
            tuner.oracle.get_space()
            # By now the chief has recorded its options and images.
            workdir.check(config)
            check_recorded_images(dataset, workdir)
            tuner.search()
        except grpc.RpcError as error:
            advice = f"the chief is gone ({error.code().name}); start it and this worker again"
            raise UserError(f"{PREFIX}ORACLE_IP", role.address, advice) from error
    _announce("the search is over")


def _search_as_chief(
    config: SearchConfig, dataset: ImageDataset, workdir: Workdir, cluster: Cluster, role: Role, argv: Sequence[str]
) -> Resumable:
    """Run the search as its chief: hand out trials until all workers know that there are no more."""

    workers, oracle = Workers(workdir), SearchTuner(config, dataset, workdir, cluster).oracle
    oracle.is_alive, oracle.announce = workers.is_alive, _announce
    oracle.announces_epochs = True
    with serving(oracle, role.address or "127.0.0.1:0") as (port, is_over):
        _announce(f"the chief listens on port {port}; what workers that it starts say is in {workers.folder}/*.log")
        processes = []
        if config.search.workers is not None:
            processes = workers.start(config.search.workers, role.address or f"127.0.0.1:{port}", argv)
        with _ending(processes):
            while not is_over():
                time.sleep(POLL_SECONDS)
                oracle.release_dead_workers()
                if processes and not is_over() and all(process.poll() is not None for process in processes):
                    advice = f"all of them have ended, see {workers.folder}/*.log; the same command continues"
                    raise UserError("--workers", config.search.workers, advice)
    return oracle


@contextlib.contextmanager
def _ending(processes: list[subprocess.Popen]) -> Iterator[None]:
    """End processes with the context: those that know that the search is over do it themselves."""
    try:
        yield
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(LAST_SECONDS)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()


def _write(
    oracle: Resumable, config: SearchConfig, dataset: ImageDataset, workdir: Workdir, argv: Sequence[str]
) -> None:
    rows = report.collect(oracle)
    if rows and rows[0]["status"] == "completed":
        report.write_picture(rows, config, workdir.path / "accuracy.png")
        report.write_recipe(rows[0], len(rows), config, argv, workdir.path / "best.yaml")
    # Last of all: its presence says that the search is finished.
    found = {
        **{key: value for key, value in describe(config).items() if key != "started"},
        "key": workdir.key,
        "finished": now(),
        "max_trials": config.search.num_trials,
        "num_validation_images": len(dataset.validation),
        "images": describe_images(dataset),
        "trials": rows,
    }
    write_results(workdir.result_file, found)


def _is_finished(config: SearchConfig, workdir: Workdir) -> bool:
    """Return whether all is done and there, by this search, and not more trials are asked for than there were."""
    if not workdir.result_file.exists():
        return False
    try:
        found = read_results(workdir.result_file)
        if found.get("key", workdir.key) != workdir.key:
            raise ValueError("it is of another run")
        written = RESULTS if any(trial["status"] == "completed" for trial in found["trials"]) else ()
        is_whole = all((workdir.path / name).exists() for name in written)
        return is_whole and found["max_trials"] == config.search.num_trials
    except (UserError, KeyError, TypeError, AttributeError, ValueError) as error:
        reason = error if type(error) is ValueError else "it is damaged"
        warn(f"{workdir.result_file} cannot be used ({reason}); it is made again.")
        return False


def _show(config: SearchConfig, workdir: Workdir) -> None:
    found = read_results(workdir.result_file)
    console = Console()
    images = f"{found['num_validation_images']:,} validation images"
    title = f"{config.data.dataset}: {config.search.tuner} search on {images}"
    caption = "accuracies in %, each at the trial's best epoch"
    console.print(report.table(found["trials"], config.search.search).screen(title, caption))
    if not found["trials"] or found["trials"][0]["status"] != "completed":
        advice = "none of its trials was completed, see above why; give other values, and another --workdir"
        raise UserError("--search", list(config.search.search), advice)
    best = found["trials"][0]
    console.print(
        f"The best by {OBJECTIVE} is trial {best['trial']}. To measure it on the test images:\n"
        f"  {command('run')} --recipe {workdir.path / 'best.yaml'}",
        soft_wrap=True,
    )
    print_written([workdir.path / name for name in (*RESULTS, "result.json", "trials")])
    console.print(f"tensorboard --logdir {workdir.path} shows the trials under HParams.", soft_wrap=True)


def _announce(sentence: str) -> None:
    print(sentence, flush=True)
