"""What makes a run fast must not change what it computes; and what is measured must be what happens."""

import copy
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from speed import watch
from torch import Tensor, nn

from mnist_cnn import machine
from mnist_cnn.network import build_network
from mnist_cnn.training import fast_steps
from mnist_cnn.training.optimizers import build_optimizer
from mnist_cnn.training.trainer import build_trainer
from tests.conftest import CONF, ROOT, configured, train_command

OPTIMIZERS = sorted(file.stem for file in (CONF / "optimizer").glob("*.yaml"))
RUN = ("data=digits", "trainer=cpu", "trainer.max_epochs=2")
# An argument that changes nothing, but has Lightning take every step by itself.
SINGLE = "+trainer.log_every_n_steps=1"


def state(run: str) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)
    return content


# --- a ReLU after its pooling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "size"),
    [({"pool_size": 2}, 9), ({"pool_size": 3, "strides": 1}, 9), ({"pool_size": 2, "padding": "same"}, 9)],
)
def test_a_relu_after_its_pooling_gives_the_same_outputs_and_gradients_to_the_bit(
    pooling: dict[str, Any], size: int
) -> None:
    layers = [{"Conv2D": {"filters": 4, "kernel_size": 3, "activation": "relu"}}, {"MaxPooling2D": pooling}]
    fast = build_network(layers, (1, size, size))
    assert [type(module) for module in fast][-2:] == [nn.MaxPool2d, nn.ReLU]
    modules = dict(fast.named_children())
    in_keras_order = nn.Sequential(*(modules[name] for name in sorted(modules, key=_keras_order)))
    # Whole numbers, so that there are ties and windows of nothing but negatives and zeros.
    x = torch.randint(-2, 3, (50, 1, size, size)).float()
    with torch.no_grad():
        modules["0_Conv2D"].weight.copy_(torch.randint(-1, 2, (4, 1, 3, 3)))  # type: ignore[operator]
    found = []
    for network in (fast, in_keras_order):
        images = x.clone().requires_grad_()
        output = network(images)
        weights = list(network.parameters())
        found.append([output, *torch.autograd.grad((output * (output + 1)).sum(), [images, *weights])])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def _keras_order(name: str) -> tuple[int, bool]:
    index, _, kind = name.partition("_")
    return int(index), kind == "relu"


def test_a_relu_stays_before_its_pooling_where_others_ask_for_it_or_the_pooling_is_shared() -> None:
    x = torch.randn(8, 2, 6, 6)
    relu = {"Activation": {"activation": "relu", "name": "positive"}}
    twice = build_network(
        [relu, {"MaxPooling2D": {"pool_size": 2, "strides": 1, "padding": "same"}},
         {"Add": {"inputs": ["positive", "positive"]}}], (2, 6, 6),
    )  # fmt: skip
    assert torch.equal(twice(x), 2 * x.relu())
    shared = build_network(
        [{"Activation": {"activation": "relu"}}, {"MaxPooling2D": {"name": "pool"}},
         {"Shared": {"layer": "pool", "inputs": "input"}}], (2, 6, 6),
    )  # fmt: skip
    assert torch.equal(shared(x), nn.functional.max_pool2d(x, 2))


# --- several steps for each of Lightning's ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        ("model=tiny", "data.batch_size=50"),
        ("model=mlp", "scheduler=onecycle", "optimizer=adamw"),
        ("model=dropout", "data.batch_size=400", "optimizer=sgd"),
        ("model=tiny", "data.batch_size=256", "trainer.precision=bf16-mixed"),
    ],
    ids=" ".join,
)
def test_steps_taken_together_are_those_taken_one_by_one(
    settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mnist_cnn.training.fast_steps._IMAGES_AT_ONCE", 700)  # so that an epoch has two parts
    for run, how in (("together", ()), ("single", (SINGLE,))):
        assert train_command(*RUN, *settings, *how, f"run_dir={run}").status == 0
    together, single = state("together"), state("single")
    assert together["global_step"] == single["global_step"]
    for key, weight in single["state_dict"].items():
        assert torch.equal(weight, together["state_dict"][key]), key
    moments = [content["optimizer_states"][0]["state"] for content in (single, together)]
    for one, other in zip(*(moment.values() for moment in moments), strict=True):
        assert all(torch.equal(one[key], other[key]) for key in one if isinstance(one[key], Tensor))
    logged = [Path(run, "metrics.csv").read_text().splitlines() for run in ("together", "single")]
    step = logged[0][0].split(",").index("step")
    assert [line.split(",")[step] for line in logged[0]] == [line.split(",")[step] for line in logged[1]]
    rows = [state(run)["callbacks"]["History"]["rows"] for run in ("together", "single")]
    for one, other in zip(*rows, strict=True):
        for what in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "lr"):
            assert one[what] == pytest.approx(other[what], rel=1e-5)


@pytest.mark.parametrize("first", ["together", "single"])
def test_a_resumed_run_counts_steps_on_where_they_are_taken_the_other_way(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take_steps(how: str) -> None:
        reason = None if how == "together" else "the test says so"
        monkeypatch.setattr(fast_steps, "why_not", lambda *_: reason)

    take_steps(first)
    assert train_command(*RUN, "model=mlp", "run_dir=run").status == 0
    before = state("run")["global_step"]
    take_steps("single" if first == "together" else "together")
    assert train_command("resume=run", "trainer.max_epochs=4").status == 0
    assert state("run")["global_step"] == 2 * before > 0


class Unknown(Callback):
    """A user's callback; who knows what it relies on."""


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ((), None),
        (("callbacks=early_stopping",), None),
        (("scheduler=onecycle",), None),
        (("+callbacks.x._target_=tests.test_speed.Unknown",), "the callback Unknown"),
        (
            ("+callbacks.x._target_=lightning.pytorch.callbacks.LearningRateMonitor",),
            "the callback LearningRateMonitor",
        ),
        (("+callbacks.x._target_=lightning.pytorch.callbacks.ModelCheckpoint",), "the callback ModelCheckpoint"),
        (("+trainer.gradient_clip_val=1.0",), "trainer.gradient_clip_val"),
        (("scheduler=cosine", "scheduler.interval=epoch"), "the scheduler"),
        (("scheduler=cosine", "+scheduler.frequency=5"), "the scheduler"),
    ],
    ids=str,
)
def test_steps_are_taken_one_by_one_where_something_needs_them(
    settings: tuple[str, ...], reason: str | None, tmp_path: Path
) -> None:
    config = configured(*RUN, *settings)
    found = fast_steps.why_not(config, build_trainer(config, tmp_path, "a test"))
    assert found is None if reason is None else reason in str(found)


def test_float16_takes_single_steps(tmp_path: Path) -> None:
    config = configured(*RUN, "trainer.precision=16-mixed")
    trainer = build_trainer(configured(*RUN), tmp_path, "a test")  # a processor can't do it
    assert "float16" in str(fast_steps.why_not(config, trainer))


def test_a_run_says_why_its_steps_are_taken_one_by_one() -> None:
    slow = train_command(*RUN, "model=mlp", "trainer.max_epochs=1", SINGLE)
    assert "note: fast steps are off, because trainer.log_every_n_steps" in slow.err
    fast = train_command(*RUN, "model=mlp", "trainer.max_epochs=1")
    assert "note:" not in fast.err


def test_gradients_are_clipped_where_that_is_asked_for() -> None:
    for run, how in (("clipped", ("+trainer.gradient_clip_val=1e-6",)), ("free", ())):
        settings = ("model=mlp", "optimizer=sgd", "optimizer.momentum=0", *how)
        assert train_command(*RUN, *settings, f"run_dir={run}").status == 0
    history = {run: state(run)["callbacks"]["History"]["rows"] for run in ("clipped", "free")}
    assert history["free"][1]["train/loss"] < 2 < history["clipped"][1]["train/loss"]


@pytest.mark.mnist
def test_ours_ends_with_the_weights_of_a_loop_without_lightning(real_mnist: Any) -> None:
    assert real_mnist("model=tiny", "trainer.max_epochs=2", "data.val_fraction=0.8", "run_dir=run").status == 0
    data_root = OmegaConf.load("run/config.yaml").data.root
    arguments = ["--model", "tiny", "--epochs", "2", "--val-fraction", "0.8", "--data-root", data_root]
    contender = [sys.executable, str(ROOT / "benchmarks" / "speed_contenders.py")]
    loop = watch([*contender, "loop", *arguments])
    ours = watch([*contender, "weights", "--checkpoint", str(Path("run/checkpoints/last.ckpt").resolve())])
    assert loop.weights == ours.weights != ""


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_saved_in_another_memory_order_go_to_their_own_weights(name: str) -> None:
    target = configured(f"optimizer={name}").optimizer
    plain = nn.Parameter(torch.randn(4, 3, 5, 5))
    stopped = build_optimizer(target, [plain])
    plain.grad = torch.randn_like(plain)
    stopped.step()

    channels_last = nn.Parameter(plain.detach().clone(memory_format=torch.channels_last))
    resumed = build_optimizer(target, [channels_last])
    resumed.load_state_dict(copy.deepcopy(stopped.state_dict()))
    gradient = torch.randn_like(plain)
    for weight, optimizer in ((plain, stopped), (channels_last, resumed)):
        weight.grad = torch.empty_like(weight).copy_(gradient)
        optimizer.step()
    torch.testing.assert_close(plain, channels_last)


# --- the machine ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is what is told to keep memory")
def test_freed_activations_are_used_again_without_a_page_fault() -> None:
    program = """
import resource, sys, torch
from mnist_cnn import machine
if sys.argv[1] == "keep":
    machine.keep_freed_memory()
for step in range(30):
    if step == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    a, b = torch.ones(12_000_000), torch.ones(3_000_000)
    del a, b
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", program, how], capture_output=True, text=True, check=True).stdout
        )
        for how in ("keep", "leave")
    }
    assert faults["keep"] < 100 < faults["leave"]


def test_no_optimizer_step_on_the_cpu_loads_the_library_that_counts_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[None] = []

    def load() -> int:
        loaded.append(None)
        return -1

    monkeypatch.setattr(torch.cuda, "_raw_device_count_nvml", load)
    for settings in ((), ("optimizer=sgd", SINGLE)):
        monkeypatch.setenv("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # as importing Lightning leaves it
        loaded.clear()
        assert train_command(*RUN, "data.batch_size=10", *settings).status == 0  # 162 steps in an epoch
        assert len(loaded) < 50


def test_threads_are_no_more_than_the_work_the_processors_and_the_container_allow(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(machine, "_CPU_QUOTA", quota)
    monkeypatch.setattr(machine, "_TORCH_DEFAULT_THREADS", 12)
    machine.use_threads(1e12)
    assert chosen == []  # OMP_NUM_THREADS is set in the tests
    monkeypatch.delenv("OMP_NUM_THREADS")
    machine.use_threads(1e12)
    machine.use_threads(2e8)
    machine.use_threads(1e6)
    for said in ("max 100000", "250000 100000", "50000 100000"):
        quota.write_text(said)
        machine.use_threads(1e12)
    monkeypatch.setattr(machine, "_TORCH_DEFAULT_THREADS", 4)  # cores, which here run two threads each
    quota.unlink()
    machine.use_threads(1e12)
    assert chosen == [8, 3, 1, 8, 2, 1, 4]


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [
        ({"architecture": "x86_64", "avx512_bf16": True}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "x86_64", "avx2": True}, False),
        ({"architecture": "aarch64"}, True),
    ],
)
def test_bfloat16_on_a_processor_without_it_is_warned_about(
    capabilities: dict[str, Any], fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    outcome = train_command(*RUN, "model=mlp", "trainer.max_epochs=1", "trainer.precision=bf16-mixed")
    assert outcome.status == 0
    assert ("AVX512_BF16" in outcome.err) is not fast


# --- compiling, and the bar -----------------------------------------------------------------------------------------


def test_a_compiled_network_leaves_checkpoints_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def without_a_compiler(self: nn.Module, **_: Any) -> None:
        compiled.append(self)
        self._compiled_call_impl = torch.compile(self._call_impl, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", without_a_compiler)
    for run, value in (("compiled", "true"), ("eager", "false")):
        settings = (*RUN, "model=mlp", "trainer.max_epochs=1", f"trainer.compile={value}", f"run_dir={run}")
        assert train_command(*settings).status == 0
    assert len(compiled) == 1
    for key, weight in state("eager")["state_dict"].items():
        torch.testing.assert_close(state("compiled")["state_dict"][key], weight)


def test_a_network_that_can_not_be_compiled_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no compiler\nat all")

    def compile_by_it(self: nn.Module, **_: Any) -> None:
        self._compiled_call_impl = torch.compile(self._call_impl, backend=broken)

    monkeypatch.setattr(nn.Module, "compile", compile_by_it)
    outcome = train_command(*RUN, "model=mlp", "trainer.compile=true", "run_dir=run")
    assert outcome.status == 2
    assert outcome.err.splitlines()[-1].startswith("error: trainer.compile=true: it is not possible here:")
    assert not Path("run").exists()


def test_in_a_terminal_a_bar_shows_the_images_and_the_loss_so_far(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    command = [sys.executable, str(ROOT / "train.py"), *RUN, "model=tiny", "data.batch_size=2"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                said += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert process.returncode == 0
    assert b"epoch  1/2:" in said
    assert b"/1293 [" in said
    assert b"loss=" in said
    assert b"\n\r" not in said.replace(b"\r\n", b"")  # the bar leaves no line behind


# --- the benchmark's own watch ----------------------------------------------------------------------------------------


def test_epochs_are_timed_from_line_to_line() -> None:
    program = """
import time
for epoch in (1, 2, 3):
    time.sleep(0.3 if epoch == 3 else 0.1)
    print(f"epoch {epoch} 0.9{epoch}", flush=True)
print("weights abc")
"""
    start = time.perf_counter()
    seen = watch([sys.executable, "-c", program])
    assert seen.command <= time.perf_counter() - start
    assert seen.val_accuracy == [0.91, 0.92, 0.93]
    assert seen.epochs[0] > 0.05  # lines may be late, but not by much
    assert seen.epochs[1] > 0.2
    assert sum(seen.epochs) < seen.command
    assert (seen.weights, seen.memory > 1) == ("abc", True)


def test_a_line_of_ours_is_understood() -> None:
    line = "epoch  3/12  loss 0.0512  accuracy 98.41%  val loss 0.0433  val accuracy 98.75%  8.1 s"
    assert watch([sys.executable, "-c", f"print({line!r})"]).val_accuracy == [pytest.approx(0.9875)]


def test_a_contender_that_fails_ends_the_benchmark_with_what_it_said() -> None:
    with pytest.raises(SystemExit, match="no such thing"):
        watch([sys.executable, "-c", "raise SystemExit('no such thing')"])
