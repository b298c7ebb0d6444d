"""One rank's share of a stack and, where it does not fit, the nearest that would."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from functools import cached_property

from lsd_jax.hw.stack import StackShape
from nki_kernels.plan import FP8, LANE, TOKENS, Shapes, TooLarge


@dataclass(eq=False)
class DoesNotFit(NotImplementedError):
    """A share that is too large. What would fit is looked for when someone asks, since searches
    meet thousands of these and read none."""

    why: str
    stack: StackShape
    ranks: int
    cores: int
    limits: dict[str, int]

    def __str__(self) -> str:
        return f"{self.why}; {self.remedy}"

    @cached_property
    def more_ranks(self) -> int | None:
        """The least number of ranks that fits: one by which the heads divide, if such a one does,
        for any other leaves ranks idle. Ranks do not act as one."""
        more = range(self.ranks + (self.cores == 1), self.stack.heads + 1)
        evenly = sorted(more, key=lambda ranks: (self.stack.heads % ranks > 0, ranks))
        return next((ranks for ranks in evenly if self._fits(ranks)), None)

    def most_tokens(self, ranks: int, cores: int = 1) -> int | None:
        """The most tokens of a frame that fit so many ranks; None where not even one does."""

        def refused(tokens: int) -> bool:
            return not self._fits(ranks, cores, replace(self.stack, tokens=tokens))

        fit = bisect_right(range(1, self.stack.tokens), False, key=refused)
        return fit or None

    @cached_property
    def most_slots(self) -> int:
        """The most frame slots that as many heads as a rank has may have."""
        return TOKENS * LANE // (self.stack.head_dim * -(-self.stack.heads // self.ranks))

    @property
    def remedy(self) -> str:
        """What to change, in words: the number of ranks, of tokens, or of frame slots."""
        apart = " that do not act as one" if self.cores > 1 else ""
        ways = [f"share the heads over {self.more_ranks} ranks{apart}"] if self.more_ranks else []
        if tokens := self.most_tokens(self.ranks, self.cores):
            ways.append(f"use at most {tokens} tokens")
        elif self._fits(self.ranks, self.cores, replace(self.stack, slots=self.most_slots)):
            ways.append(f"use at most {self.most_slots} frame slots")
        most = self.stack.heads
        if not self.more_ranks and self.ranks < most and (tokens := self.most_tokens(most)):
            ways.append(f"use at most {tokens} tokens on {most} ranks{apart}")
        return ", or ".join(ways) or "no number of ranks or tokens fits: use a smaller dim or mlp"

    def _fits(self, ranks: int, cores: int = 1, stack: StackShape | None = None) -> bool:
        try:
            _ = shapes_of_rank(stack or self.stack, ranks, cores, self.limits).buffering
        except NotImplementedError:
            return False
        return True


def share(stack: StackShape, ranks: int = 1, cores: int = 1, **limits: int) -> Shapes:
    """What one rank of `ranks` computes of a stack; `cores` of them may act as one (LNC). One that
    is to write a ring has a ring of no more than those places.

    Raises NotImplementedError for what the kernel cannot do; DoesNotFit, one of them, for what it
    could do on more ranks or with fewer tokens.
    """
    ranks = max(ranks, cores)
    if not 1 <= ranks <= stack.heads:
        raise NotImplementedError(
            f"{stack.heads} heads do not share {ranks} ranks; use at most {stack.heads}"
        )
    if stack.weight_dtype not in ("", FP8):
        raise NotImplementedError(
            f"weights in {stack.weight_dtype}: the tensor engine does not take them; use {FP8}, "
            "or backend xla"
        )
    try:
        shapes = shapes_of_rank(stack, ranks, cores, limits)
        _ = shapes.buffering
    except TooLarge as refusal:
        raise DoesNotFit(str(refusal), stack, ranks, cores, limits) from None
    return shapes


def shapes_of_rank(stack: StackShape, ranks: int, cores: int, limits: dict[str, int]) -> Shapes:
    """The sizes of one rank, checked but for SBUF's. Raises NotImplementedError."""
    shapes = Shapes(
        layers=stack.layers,
        sessions=stack.sessions,
        tokens=stack.tokens,
        dim=stack.dim,
        heads=-(-stack.heads // ranks),
        mlp=stack.mlp if ranks == 1 else -(-stack.mlp // (ranks * LANE)) * LANE,
        ageless=stack.ageless,
        slots=stack.slots,
        ages=stack.ages,
        itemsize=stack.itemsize,
        ranks=ranks,
        cores=cores,
        weight_dtype=stack.weight_dtype,
        ring=stack.places * stack.tokens,
        places=max(stack.places, 1),
        per_kv=stack.per_kv,
        parts=max(1, stack.head_dim // LANE),
        **limits,
    )
    shapes.check(stack.head_dim)
    return shapes
