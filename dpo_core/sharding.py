"""Weights, gradients and optimiser state shared out among the ranks (FSDP2), for models that do not fit otherwise.

Its libraries are imported where they are needed: they cost as much time as torch itself.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from dpo_core.context import RunContext

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


class Sharding:
    """Cuts networks into one part per rank, along the first dimension of each weight.

    A network gathers the weights of one block at a time, when the block runs (`torch.distributed.fsdp.fully_shard`,
    arXiv 2304.11277). For everything else each rank has its parts as plain parameters that share the memory of the
    network's own, so optimiser, average and clipping need not know. Gradients are summed, not averaged.
    Every rank must call the same methods in the same order.
    """

    def __init__(self, context: RunContext) -> None:
        """Raises ValueError when the ranks have no process group in common."""
        from torch.distributed.device_mesh import init_device_mesh

        if not dist.is_initialized() or dist.get_world_size() != context.world_size:
            raise ValueError(
                f"policy.sharding: full needs a torch process group of all {context.world_size} ranks, and whatever "
                "launched this run made none; set policy.sharding to none"
            )
        if context.device.type == "cuda":
            torch.cuda.set_device(context.device)
        self.rank, self.world_size = context.rank, context.world_size
        self.mesh = init_device_mesh(context.device.type, (context.world_size,))
        self.network: Any = None
        self.reduces_once = False
        self.named: dict[str, DTensor] = {}

    def cut(self, network: Any) -> None:
        """Cut ``network`` where it is and keep only this rank's parts on the device.

        Blocks are those that diffusers says must stay together, and the rest.
        """
        from torch.distributed.fsdp import fully_shard

        network.to(memory_format=torch.contiguous_format)  # parts of channels-last weights cannot be put together
        names = set(network._no_split_modules or ())
        blocks = [module for module in network.modules() if type(module).__name__ in names]
        for module in (*reversed(blocks), network):  # the inner ones first
            fully_shard(module, mesh=self.mesh, reshard_after_forward=True)
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)

    def train(self, network: Any) -> dict[str, torch.nn.Parameter]:
        """This rank's parts of the trainable weights of ``network``, which is cut already."""
        self.network = network
        named = {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}
        # Frozen weights have no gradient to hold: only where few are trained is there room for it between reductions.
        trained, every = (sum(p.numel() for p in group) for group in (named.values(), network.parameters()))
        self.reduces_once = 2 * trained < every
        self.named = named
        return {name: torch.nn.Parameter(whole.to_local().detach()) for name, whole in named.items()}

    def before_backward(self, last: bool) -> None:
        """Say whether the next backward pass is the last one of its update.

        Where adapters are trained, gradients wait on their rank for the last one. A whole gradient would be as large as
        what was shared out to save, so there it is summed and cut after each backward pass.
        """
        if self.reduces_once:
            self.network.set_requires_gradient_sync(last)

    def hand_over_gradients(self, parts: dict[str, torch.nn.Parameter]) -> None:
        """Give each part its gradient, zeros where it has none."""
        for name, whole in self.named.items():
            gradient: Any = whole.grad
            parts[name].grad = torch.zeros_like(parts[name]) if gradient is None else gradient.to_local()
            whole.grad = None

    def norm(self, parts: dict[str, torch.nn.Parameter]) -> Tensor:
        """The norm of the whole gradient, the same on all ranks; infinite or NaN where any rank's part is."""
        mine, all_have = self._squares(parts, in_parts=True), self._squares(parts, in_parts=False)
        dist.all_reduce(mine)
        return (mine + all_have).sqrt().float()

    def _squares(self, parts: dict[str, torch.nn.Parameter], in_parts: bool) -> Tensor:
        gradients = [p.grad for name, p in parts.items() if p.grad is not None and (name in self.named) == in_parts]
        if not gradients:
            return torch.zeros((), dtype=torch.float64, device=self.mesh.device_type)
        return torch.stack(torch._foreach_norm(gradients)).double().square().sum()

    def share_overflow(self, parts: dict[str, torch.nn.Parameter]) -> None:
        """Make every rank's gradient infinite where one's is not finite, or their scalers would part company."""
        if not self.norm(parts).isfinite():
            for parameter in parts.values():
                assert parameter.grad is not None
                parameter.grad.fill_(torch.inf)

    def gather(self, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """A copy of the whole of each tensor that is cut like the weight of its name, on the CPU of rank 0; nothing
        elsewhere."""
        found: dict[str, Tensor] = {}
        for name, part in parts.items():
            whole = self.whole(name, part)
            if self.rank == 0:
                found[name] = whole.detach().to("cpu", copy=whole is part)
        return found

    def whole(self, name: str, part: Tensor) -> Tensor:
        """One tensor that is cut like the weight ``name``, put together on every rank; any other as it is."""
        like = self.named.get(name)
        if like is None or part.ndim == 0:
            return part
        from torch.distributed.tensor import DTensor

        joined = DTensor.from_local(
            part.detach(), self.mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        return joined.full_tensor()

    def part(self, name: str, whole: Tensor) -> Tensor:
        """What this rank keeps of ``whole``, a tensor like the weight ``name``; may be no rows at all."""
        if name not in self.named or whole.ndim == 0:
            return whole
        rows = whole.chunk(self.world_size)
        return rows[self.rank] if self.rank < len(rows) else whole[:0]

    @contextmanager
    def whole_weights(self) -> Iterator[None]:
        """Inside, the network of rank 0 holds its trained weights whole, on the CPU; it can be written, not run."""
        for name, whole in self.named.items():
            full = whole.full_tensor().detach()
            if self.rank == 0:
                self._put(name, torch.nn.Parameter(full.cpu()))
        try:
            yield
        finally:
            for name, whole in self.named.items():
                self._put(name, whole)

    def _put(self, name: str, parameter: Any) -> None:
        owner, _, leaf = name.rpartition(".")
        self.network.get_submodule(owner)._parameters[leaf] = parameter
