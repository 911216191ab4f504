"""Deltas in the object store: each lies there once, whatever it is a part of, and the driver holds one at a time for itself."""

import os

import psutil
import ray
import torch

from talos_ray.core.delta import Delta
from talos_ray.core.layout import Layout
from talos_ray.core.mask import Mask, mask_from_flags
from talos_ray.core.merging import merged
from talos_ray.orchestrate.worker import Arm, StoredDelta, in_store, thaw
from talos_ray.storage.run_folder import RunFolder

BASE = "b" * 64
SIZE = 1 << 21  # values of a delta: 4 MB in bfloat16


def written(folder: RunFolder, mask: Mask, count: int) -> list[str]:
    """Names of the tasks whose deltas are in the folder now."""
    names = [f"task{i}" for i in range(count)]
    for i, name in enumerate(names):
        values = torch.full((mask.k,), float(i + 1), dtype=torch.bfloat16)
        folder.save_delta(Delta(name, values, BASE, mask.fingerprint, {}))
    return names


def held_alone() -> int:
    """Bytes of this process outside of files and of memory that others may map too, as the object store is."""
    found = psutil.Process(os.getpid()).memory_info()
    return found.rss - found.shared


@ray.remote
def first_values(arm: Arm, mask: str) -> list[float]:
    return [float(d.values[0]) for d in arm.unpacked(BASE, mask)]


def test_the_driver_holds_no_delta_for_itself_and_the_store_each_one_once(ray_here, tmp_path):
    mask = mask_from_flags(Layout(("w",), ((SIZE,),)), torch.ones(SIZE, dtype=torch.bool))
    folder = RunFolder(str(tmp_path / "run"))
    names = written(folder, mask, 12)
    in_store(folder.load_delta(names[0]))  # what is loaded only once, is by now
    before, free = held_alone(), ray.available_resources()["object_store_memory"]
    deltas = {t: in_store(folder.load_delta(t)) for t in names}
    own = held_alone() - before
    everything = len(names) * 2 * SIZE
    assert own < 0.25 * everything, f"{own:,} bytes of {everything:,}"  # measured: a delta or two, while they are read
    for t in names:
        found = folder.load_delta(t)
        assert torch.equal(deltas[t].values, found.values) and deltas[t].fingerprint == found.fingerprint

    _, rows = merged(deltas, mask)  # what no method changes is what came in
    arms = [Arm.stored("sparse", mask.bits, d) for d in (deltas, rows)]
    assert [d[1] for d in arms[0].deltas] == [d[1] for d in arms[1].deltas] == [deltas[t].ref for t in sorted(names)]
    wanted = [float(names.index(t) + 1) for t in sorted(names)]
    assert ray.get(first_values.remote(ray.put(arms[0]), mask.fingerprint)) == wanted
    assert free - ray.available_resources().get("object_store_memory", free) < 1.2 * everything


def test_an_arm_takes_deltas_that_are_not_in_the_store_as_well(ray_here):
    mask = mask_from_flags(Layout(("w",), ((8,),)), torch.ones(8, dtype=torch.bool))
    values = torch.arange(8, dtype=torch.bfloat16)
    plain = Delta("t", values, BASE, mask.fingerprint)
    arm = Arm.stored("sparse", mask.bits, {"t": plain})
    assert not isinstance(plain, StoredDelta) and torch.equal(thaw(ray.get(arm.deltas[0][1]))["values"], values)
    assert torch.equal(arm.unpacked(BASE, mask.fingerprint)[0].values, values)
    alike = Arm.of("sparse", mask.bits, {"t": plain})
    assert alike.key == arm.key and torch.equal(alike.unpacked(BASE, mask.fingerprint)[0].values, values)
