"""Select the layers of an int8 network that return to float32: as few as the images that choose allow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx

from ensemble.arrays import Classes, Logits, Pixels
from ensemble.card import ModelCard
from ensemble.errors import ModelError
from ensemble.events import Listener, Notice
from exporters.accuracy_gate import MARGIN, Verdict, expect_changes, judge
from exporters.int8_layers import Layer
from exporters.int8_near_ties import NO_FALLBACK, Fallback, distances, join, joined_logits
from exporters.int8_qdq import find_two_terms
from exporters.int8_schemes import ASYMMETRIC, Range, Scheme
from exporters.int8_search import Harm, LayerOrder, alone, fewest, find_blocks, order_two_terms, rank_layers, search
from exporters.int8_timing import Times
from exporters.training_record import Familiar

Expected = tuple[Verdict, Fallback]

MOST_IN_FLOAT = 0.5  # of the multiplications
FASTER = 0.97  # of the time: a smaller gain is noise
_COARSER = 0.9  # of the time: a smaller gain is not worth integer sums, whose logits are less exact


@dataclass(frozen=True, slots=True, eq=False)
class Quantized:
    """A quantized model and its verdict.

    ``in_float`` are the layers that stayed in float32: those that do not suit the ``scheme``, the first ones where
    float32 is faster, then the one with the largest error for the time that it saves first. ``in_float_share`` is their
    share of the multiplications; ``ranges`` names how the ranges were chosen. The layers were chosen by ``chosen_on``
    images, and none of them is among those of the verdict, which are ``judged_on``. With ``float_sums`` the sums of
    residual branches are in float32; the layers of ``two_terms`` read them with more than 8 bits. With a
    ``fallback`` near ties are answered in float32.
    """

    proto: onnx.ModelProto
    verdict: Verdict
    layers: int
    in_float: tuple[str, ...]
    in_float_share: float
    calibration: int
    ranges: str
    chosen_on: int = 0
    judged_on: Familiar | None = None
    scheme: Scheme = ASYMMETRIC
    float_sums: bool = False
    two_terms: tuple[str, ...] = ()
    fallback: Fallback = NO_FALLBACK

    def as_dict(self) -> dict[str, Any]:
        """Return what the card keeps."""
        return {
            "gate": self.verdict.as_dict() | ({} if self.judged_on is None else {"seen": self.judged_on.as_dict()}),
            "calibration_images": self.calibration,
            "choosing_images": self.chosen_on,
            "ranges": self.ranges,
            "rounding": "second order, biases corrected",
            "layers": self.layers,
            "layers_in_float": list(self.in_float),
            "multiplications_in_float": round(self.in_float_share, 4),
            **({"residual_sums": "float32"} if self.float_sums else {}),
            **({"inputs_in_two_terms": list(self.two_terms)} if self.two_terms else {}),
            **({"near_ties": self.fallback.as_dict()} if self.fallback.below else {}),
            **({} if self.scheme is ASYMMETRIC else {"scheme": self.scheme.name}),
        }


@dataclass(frozen=True, slots=True, eq=False)
class Judges:
    """Images ``(N, H, W, 3)`` to evaluate on, and their true classes ``(N,)`` where they are known.

    ``least`` is the share of the answers that must stay those of float32; None is the usual one. On images that choose
    a model may change ``margin`` of what is allowed; ``others`` returns up to so many further images of people who do
    not judge.
    """

    pixels: Pixels
    truth: Classes | None = None
    least: float | None = None
    margin: float = MARGIN
    others: Callable[[int], Pixels] | None = None

    def compare(self, reference: Logits, found: Logits) -> Verdict:
        """Compare logits ``(N, C)`` of these images with those of float32."""
        return replace(judge("int8", reference, found, self.truth), least=self.least)

    def expect(self, reference: Logits, found: Logits, others: Logits, *, most_again: float) -> Expected:
        """Compare logits ``(N, C)`` of images that choose: by the changes to expect, not by those that happen here.

        Near ties are answered by the reference, as few as make the model safe, up to ``most_again`` of the images.
        """
        apart = np.sort(distances(found))
        most = int(most_again * len(found)) if reference.shape[1] > 1 else 0

        def verdict(again: int) -> Expected:
            below = float(apart[again]) if again else 0.0
            fallback = Fallback(below, float(np.mean(apart < below))) if again and np.isfinite(below) else NO_FALLBACK
            expected = expect_changes(reference, found, others, below=fallback.below)
            compared = self.compare(reference, joined_logits(found, reference, fallback))
            return replace(compared, margin=self.margin, expected=expected), fallback

        best = verdict(0)
        if best[0].is_safe or not most:
            return best
        best = verdict(most)
        if not best[0].is_safe:
            return verdict(0)
        fails, passes = 0, most
        while passes - fails > 1:
            middle = (fails + passes) // 2
            tried = verdict(middle)
            if tried[0].is_safe:
                best, passes = tried, middle
            else:
                fails = middle
        return best

    def joined(self, other: Judges) -> Judges:
        """Return these images and others."""
        truth = None
        if self.truth is not None and other.truth is not None:
            truth = np.concatenate([self.truth, other.truth])
        return replace(self, pixels=np.concatenate([self.pixels, other.pixels]), truth=truth)


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Images ``(N, H, W, 3)`` that calibrate, those that choose and judge, and others that could judge again."""

    calibration: Pixels
    choose: Judges
    gate: Judges
    spare: Callable[[], Judges] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Selector:
    """Selects the layers of a network that compute on integers.

    Of its ``layers``, ``suited`` may; the others are ``in_float``, ``unsuited`` among them. ``saved`` are the
    microseconds that integers save in each layer, and ``blank`` is a result that says what is known of all. Float32
    answers for ``most_others`` further images; the ``plain`` network takes ``plain_time`` microseconds, and may answer
    ``most_again`` of the images again.
    """

    card: ModelCard
    model: onnx.ModelProto
    layers: tuple[Layer, ...]
    suited: tuple[Layer, ...]
    unsuited: tuple[str, ...]
    in_float: tuple[str, ...]
    saved: Mapping[str, float]
    products: Mapping[str, int]
    ranges: Mapping[str, Range]
    blank: Quantized
    build: Callable[..., onnx.ModelProto]
    error: Callable[[onnx.ModelProto], float]
    time_model: Callable[[onnx.ModelProto], Times]
    predict: Callable[..., Logits]
    reference: bytes
    plain: onnx.ModelProto
    plain_time: float
    most_others: int
    most_again: float
    listener: Listener
    harms: list[Harm] = field(default_factory=list)

    @property
    def has_sums(self) -> bool:
        """True if sums could be in float32: TensorRT would store the terms in float32 too."""
        nodes = self.model.graph.node
        scheme = self.blank.scheme
        if scheme.inputs_only:
            return False  # they always are
        return scheme.integer_bias and any(nodes[i].op_type == "Add" for one in self.suited for i in one.nodes)

    def select(self, choose: Judges) -> Quantized:
        """Return the network that is safe on these images with as little as possible in float32.

        Raises:
            ModelError: E436 when half of the multiplications in float32 are not enough.
        """
        answers = self.predict(self.reference, choose.pixels)
        further = answers[:0]
        if choose.others is not None and self.most_others:
            further = self.predict(self.reference, choose.others(self.most_others))

        def attempt(
            returned: tuple[str, ...] = (), *, float_sums: bool = self.has_sums, two_terms: tuple[str, ...] = ()
        ) -> Quantized:
            in_float = (*self.in_float, *returned)
            two_terms = tuple(name for name in two_terms if name not in in_float)
            layers = [layer for layer in self.layers if layer.name not in in_float]
            found = self.build(layers, float_sums=float_sums, two_terms=two_terms)
            logits = self.predict(serialize(found), choose.pixels)
            verdict, fallback = choose.expect(answers, logits, further, most_again=self.most_again)
            share = sum(self.products[name] for name in in_float) / sum(self.products.values())
            return replace(
                self.blank,
                proto=found,
                verdict=verdict,
                in_float=in_float,
                in_float_share=share,
                chosen_on=len(choose.pixels),
                float_sums=float_sums,
                two_terms=two_terms,
                fallback=fallback,
            )

        wholes = []
        for float_sums in (False, True) if self.has_sums else (False,):
            whole = attempt(float_sums=float_sums)
            if whole.verdict.is_safe and not whole.fallback.below:
                return whole
            wholes += [whole] if whole.verdict.is_safe else []
        if wholes:
            return self._fastest(wholes[::-1], gain=_COARSER)
        two_terms = self._find_two_terms() if self.has_sums or self.blank.scheme.inputs_only else ()
        if two_terms:
            most = attempt(two_terms=two_terms)
            if most.verdict.is_safe:
                return fewest(alone(two_terms), most, lambda some: attempt(two_terms=some))
        found, most = search(
            self._orders(),
            self.in_float,
            self.products,
            partial(attempt, two_terms=two_terms),
            most_in_float=MOST_IN_FLOAT,
        )
        if not found:
            raise self.failed(most)
        return self._fastest(found)

    def judge_on(self, gate: Judges, found: Quantized) -> Quantized:
        """Return the network with its verdict on images that have chosen nothing."""
        proto = join(found.proto, self.plain, found.fallback) if found.fallback.below else found.proto
        expected = self.predict(self.reference, gate.pixels)
        return replace(found, proto=proto, verdict=gate.compare(expected, self.predict(serialize(proto), gate.pixels)))

    def failed(self, tried: Quantized) -> ModelError:
        """Return the error for a network that the gate refuses."""
        return ModelError(
            "E436",
            f"{self.card.member} (int8): {'; '.join(tried.verdict.faults)}, with {len(tried.in_float)} of "
            f"{tried.layers} layers and {tried.in_float_share:.0%} of the multiplications in float",
            hint=tried.verdict.hint,
            details=tuple(
                f"{harm.names[0]}: alone on integers, it changes the logits by {harm.error:.1%}" for harm in self.harms
            ),
        )

    def tell_in_float(self, found: Quantized) -> Quantized:
        """Say which layers stay in float32, and return the network."""
        parts = []
        if found.in_float:
            count = len(self.unsuited)
            without = f" (TensorRT has no kernels for the first {count})" if count else ""
            parts.append(
                f"{len(found.in_float)} of {found.layers} layers with {found.in_float_share:.1%} of the "
                f"multiplications stay in float: {', '.join(found.in_float)}{without}"
            )
        if self.blank.scheme.inputs_only:
            parts.append("activation functions, sums and gates (squeeze-and-excitation) are in float")
        if found.float_sums:
            parts.append("the sums of residual branches are in float")
        if found.two_terms:
            parts.append(f"inputs with more than 8 bits: {', '.join(found.two_terms)}")
        if found.fallback.below:
            parts.append(
                f"near ties are answered in float: {found.fallback.share:.1%} of the images, whose two highest logits "
                f"are less than {found.fallback.below:.3g} apart"
            )
        elif parts and len(self.plain.graph.output) > 1 and self.blank.scheme.integer_bias:
            parts.append("near ties are answered on integers, as the file has features beside its logits")
        if parts:
            self.listener.notice(Notice("I437", f"{self.card.member}: {'; '.join(parts)}"))
        return found

    def _fastest(self, found: Sequence[Quantized], *, gain: float = FASTER) -> Quantized:
        """Return the model that takes the least time, answers in float32 included."""
        if len(found) == 1:
            return found[0]
        spent = [self.time_model(one.proto).total + one.fallback.share * self.plain_time for one in found]
        return found[find_fastest(spent, gain)]

    def _rank(self) -> Sequence[Harm]:
        """Return what each layer alone changes."""
        if not self.harms:
            self.harms.extend(self._rank_groups([(layer,) for layer in self.suited]))
        return self.harms

    def _rank_groups(self, groups: Sequence[tuple[Layer, ...]], stage: str = "rank layers") -> tuple[Harm, ...]:
        def error_of(some: Collection[Layer]) -> float:
            return self.error(self.build(some, float_sums=self.has_sums))

        return rank_layers(groups, self.saved, error_of, self.listener, stage)

    def _find_two_terms(self) -> tuple[str, ...]:
        """Return the layers whose input is worth two terms, the best first."""
        candidates = find_two_terms(self.model.graph, self.suited, self.ranges)

        def error_of(layer: Layer) -> float:
            return self.error(self.build([layer], float_sums=True, two_terms=(layer.name,)))

        return order_two_terms(self._rank(), candidates, self.products, error_of, self.listener)

    def _orders(self) -> list[LayerOrder]:
        """Return the orders in which layers return to float32: only one where the times of layers are not known."""
        harms = self._rank()
        if not self.blank.scheme.integer_bias or self.blank.scheme.inputs_only:
            return [tuple(harm.names for harm in harms)]
        # from the first layer on there is one border to integers, where conversions take time; errors of early layers
        # pass through all others
        forward = alone([layer.name for layer in self.suited])
        blocks = self._rank_groups(find_blocks(self.model.graph, self.suited), "rank blocks")
        orders = [tuple(harm.names for harm in harms), forward, tuple(harm.names for harm in blocks)]
        return [order for order in orders if order]


def find_fastest(spent: Sequence[float], gain: float = FASTER) -> int:
    """Return the place of the least time: the first one unless another is less than ``gain`` of it."""
    best = min(range(len(spent)), key=spent.__getitem__)
    return best if spent[best] < gain * spent[0] else 0


def serialize(proto: onnx.ModelProto) -> bytes:
    """Return the bytes of a model, the same ones for the same model."""
    data: bytes = proto.SerializeToString(deterministic=True)
    return data
