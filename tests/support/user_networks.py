"""Checkpoints as people's training scripts write them, each with the network that it was saved from.

A case has what is saved, how it is opened, and the user's own network, whose logits are the truth. All networks share
one tiny body, so that a case costs milliseconds. The names of other libraries are cited beside the functions.
"""

from __future__ import annotations

import argparse
import collections
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from checkpoints.loading.head_options import HeadRequest, parse_head_layers
from ensemble.labels import MASK18
from tests.support.weights import TINY, shake

State = dict[str, torch.Tensor]
Network = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """One checkpoint: ``network`` maps images to the user's own logits; None if it must be refused with ``code``."""

    name: str
    content: object
    network: Network | None
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: str = "raw"
    code: str = ""
    channels: int = 3


def body(classes: int = 5, arch: str = TINY, **options: Any) -> Any:
    """Return a network with shaken statistics and affine weights."""
    torch.manual_seed(0)
    return settle(timm.create_model(arch, pretrained=False, num_classes=classes, **options))


def settle(module: Any) -> Any:
    """Give every normalization values as after a training, and return the module in eval mode."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return shake(module)


def changed(module: Any, factor: float = 1.1) -> Any:
    """Return a copy with other weights: an earlier or averaged state of the same network."""
    copied = copy.deepcopy(module)
    for parameter in copied.parameters():
        parameter.data.mul_(factor)
    return copied.eval()


def prefixed(prefix: str, state: Mapping[str, torch.Tensor]) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def state_of(module: Any) -> State:
    return dict(module.state_dict())


class Apart(nn.Module):
    """A user's class: a body without classifier, and other layers behind it, under any names."""

    def __init__(self, forward: Callable[[Any, torch.Tensor], torch.Tensor], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            setattr(self, name, module)
        self._run = forward

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self._run(self, images)


def features_of(classes: int = 0) -> Any:
    return body(classes)


WIDTH = int(features_of().num_features)


# prefixes and marks of wrappers


def wrappers() -> Iterator[Case]:
    net = body()
    state = state_of(net)
    for prefix in (
        "module.",
        "_orig_mod.",
        "model.",
        "net.",
        "backbone.",
        "encoder.",
        "network.",
        "timm_model.",
        "learner.",
        "resnet.",
        "my_resnet_50.",
        "feature_extractor.model.",
        "_fsdp_wrapped_module.",
        "model._orig_mod.module.",
        "a.b.c.d.",
        "base_model.model.",
        "student.",
        "0.",
        "models.0.",
        "_forward_module.module.",
        "module.module.",
    ):
        yield Case(f"prefix {prefix}", {"state_dict": prefixed(prefix, state)}, net, {"arch": TINY})
    for mark in (
        "_fsdp_wrapped_module.",
        "_checkpoint_wrapped_module.",
        "_orig_mod.",
        "module.",
        "_orig_mod._checkpoint_wrapped_module.",
    ):
        inner = {
            (f"{key.split('.')[0]}.{mark}{key.split('.', 1)[1]}" if key.startswith("layer") else key): tensor
            for key, tensor in state.items()
        }
        yield Case(f"mark inside {mark}", inner, net, {"arch": TINY})
        deep = {key.replace(".0.conv2.", f".0.{mark}conv2."): tensor for key, tensor in state.items()}
        yield Case(f"mark deep inside {mark}", {"model": deep}, net, {"arch": TINY})


def places() -> Iterator[Case]:
    net = body()
    state = state_of(net)
    nested: object = state
    for name in ("weights", "best", "model", "checkpoint", "payload"):
        nested = {name: nested, "epoch": 3}
        yield Case(f"in a dictionary, {name}", nested, net, {"arch": TINY})
    yield Case("in a list", [state, {"epoch": 1}], net, {"arch": TINY})
    yield Case("in a tuple", (3, state), net, {"arch": TINY})
    yield Case("pairs of name and tensor", {"weights": list(state.items())}, net, {"arch": TINY})
    yield Case("ordered", collections.OrderedDict(state), net, {"arch": TINY})
    yield Case(
        "args beside", {"args": argparse.Namespace(lr=1), "network_state": state, "acc": 0.9}, net, {"arch": TINY}
    )
    momenta = {"state": {0: {"exp_avg": state["layer1.0.conv1.weight"], "step": 3}}, "param_groups": []}
    yield Case(
        "optimizer beside", {"model": state, "optimizer": momenta, "scheduler": {"last": 1}}, net, {"arch": TINY}
    )
    named = {"state": {key: {"exp_avg": tensor} for key, tensor in state.items()}}
    yield Case("optimizer by names", {"model": state, "optimizer_state_dict": named}, net, {"arch": TINY})
    copies = {f"optim.{key}": tensor for key, tensor in state.items()}
    yield Case("optimizer as large as the model", {"model": state, "optimizer_states": [copies]}, net, {"arch": TINY})
    halves = {
        "encoder": {k: t for k, t in state.items() if not k.startswith("fc.")},
        "head": {"weight": state["fc.weight"], "bias": state["fc.bias"]},
    }
    yield Case("body and head in two dictionaries", halves, net, {"arch": TINY})
    yield Case("twice the same", {"model": state, "state_dict": state}, net, {"arch": TINY})
    other = state_of(changed(net))
    for form, content in (
        ("list", [state, other]),
        ("dictionary", {"fold0": state, "fold1": other}),
        ("list inside", {"models": [{"state_dict": state}, {"state_dict": other}]}),
        ("module list", prefixed("models.0.", state) | prefixed("models.1.", other)),
    ):
        yield Case(f"folds in a {form}", content, None, {"arch": TINY}, code="E448")
        chosen = {"list": "1", "dictionary": "fold1", "list inside": "models.1", "module list": "models.1"}[form]
        yield Case(f"the second fold in a {form}", content, changed(net), {"arch": TINY, "weights": chosen})


def extras() -> Iterator[Case]:
    net = body()
    state = state_of(net)
    counts = {f"{key.rpartition('.')[0]}.total_ops": torch.zeros(1, dtype=torch.float64) for key in state}
    for name, more in (
        ("class weights", {"class_weights": torch.ones(5)}),
        ("loss", {"criterion.weight": torch.ones(5), "loss_fn.pos_weight": torch.ones(5)}),
        # catalyst (catalyst/utils/torch.py, pack_checkpoint)
        ("state of a loss", {"criterion_state_dict.weight": torch.ones(5), "loss_fn.kernel": torch.ones(5, 5)}),
        ("focal loss", {"loss.alpha": torch.ones(5), "loss.ce.weight": torch.ones(5)}),
        ("torchmetrics", {"val_acc.tp": torch.zeros(5, dtype=torch.int64), "train_metrics.confmat": torch.ones(5, 5)}),
        ("metric states", {"valid_f1.total": torch.tensor(3), "auroc.preds": torch.rand(7)}),
        ("mean and std", {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}),
        ("normalization", {"normalize.mean": torch.zeros(3), "normalize.std": torch.ones(3)}),
        ("pixel mean", {"pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)}),
        ("thop", counts | {"total_ops": torch.zeros(1), "total_params": torch.zeros(1)}),
        ("counters", {"n_steps": torch.tensor(4), "global_step": torch.tensor(9.0)}),
        ("prior", {"class_prior": torch.full((5,), 0.2), "log_prior": torch.zeros(5)}),
        ("auxiliary head", {"aux_head.weight": torch.rand(5, WIDTH), "aux_head.bias": torch.rand(5)}),
        ("projector", {"projector.0.weight": torch.rand(16, WIDTH), "projector.2.weight": torch.rand(8, 16)}),
        ("another task", {"rotation.weight": torch.rand(4, WIDTH), "rotation.bias": torch.rand(4)}),
        ("centers", {"center_loss.centers": torch.rand(5, WIDTH)}),
        ("memory bank", {"queue": torch.rand(WIDTH, 32), "queue_ptr": torch.zeros(1, dtype=torch.int64)}),
        ("temperature", {"temperature": torch.tensor([1.5])}),
    ):
        inside = prefixed("model.", state) | more
        yield Case(f"beside: {name}", {"state_dict": inside}, net, {"arch": TINY})
    for name, more in (
        ("attention", {"layer4.attn.weight": torch.rand(8, 8)}),
        ("attention at the top", {"cbam.conv.weight": torch.rand(1, 2, 7, 7)}),
    ):
        yield Case(f"inside: {name}", state | more, None, {"arch": TINY}, code="E410")
        yield Case(
            f"left out: {name}",
            state | more,
            net,
            {"arch": TINY, "head": HeadRequest(leave_out=("layer4.attn", "cbam"))},
        )


# heads


def heads() -> Iterator[Case]:
    def over(head: nn.Module, name: str = "head", backbone: str = "backbone", first: bool = False) -> Any:
        parts: dict[str, nn.Module] = {backbone: features_of(), name: settle(head)}
        if first:
            parts = dict(reversed(parts.items()))
        return Apart(lambda self, x: getattr(self, name)(getattr(self, backbone)(x)), **parts).eval()

    for name in (
        "fc",
        "classifier",
        "head",
        "last_linear",
        "linear",
        "out",
        "cls",
        "logits",
        "my_own_name",
        "output_layer",
        "net2",
        "_fc",
        "top",
    ):
        user = over(nn.Linear(WIDTH, 5), name)
        yield Case(f"head apart: {name}", {"state_dict": state_of(user)}, user, {"arch": TINY})
    user = over(nn.Linear(WIDTH, 5), "head", first=True)
    yield Case("head before the body", state_of(user), user, {"arch": TINY})
    user = over(nn.Linear(WIDTH, 5), "fc", "m")
    yield Case(
        "in a LightningModule",
        {"state_dict": prefixed("model.", state_of(user)), "hyper_parameters": {"lr": 1}},
        user,
        {"arch": TINY},
    )
    for name, head in (
        ("dropout before", nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, 5))),
        ("nested", nn.Sequential(nn.Sequential(nn.Dropout(0.5)), nn.Sequential(nn.Linear(WIDTH, 5)))),
        ("no bias", nn.Linear(WIDTH, 5, bias=False)),
        ("neck", nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 5))),
        ("neck without bias", nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Dropout(0.2), nn.Linear(WIDTH, 5, bias=False))),
        ("neck without affine", nn.Sequential(nn.BatchNorm1d(WIDTH, affine=False), nn.Linear(WIDTH, 5))),
        ("two layers in a row", nn.Sequential(nn.Linear(WIDTH, 8), nn.Linear(8, 5))),
        ("normalized logits", nn.Sequential(nn.Linear(WIDTH, 5), nn.BatchNorm1d(5))),
    ):
        user = over(head)
        yield Case(f"head: {name}", state_of(user), user, {"arch": TINY})
        inside = features_of(5)
        inside.fc = settle(copy.deepcopy(head))
        yield Case(f"head in place: {name}", state_of(inside), inside.eval(), {"arch": TINY})
    user = Apart(
        lambda s, x: s.classifier(s.bottleneck(s.base(x))),
        base=features_of(),
        bottleneck=settle(nn.BatchNorm1d(WIDTH)),
        classifier=settle(nn.Linear(WIDTH, 5, bias=False)),
    ).eval()
    yield Case("neck of re-identification", state_of(user), user, {"arch": TINY})
    for layers, head in (
        ("linear,relu,linear", nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 5))),
        ("linear,gelu,linear", nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, 5))),
        ("linear,bn,relu,linear", nn.Sequential(nn.Linear(WIDTH, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))),
        (
            "bn,linear,swish,bn,linear",
            nn.Sequential(nn.BatchNorm1d(WIDTH), nn.Linear(WIDTH, 16), nn.SiLU(), nn.BatchNorm1d(16), nn.Linear(16, 5)),
        ),
        (
            "layernorm,linear,tanh,linear",
            nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 16), nn.Tanh(), nn.Linear(16, 5)),
        ),
        ("linear,prelu,linear", nn.Sequential(nn.Linear(WIDTH, 16), nn.PReLU(), nn.Linear(16, 5))),
        (
            "linear,relu,linear,relu,linear",
            nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 5)),
        ),
        ("relu,linear", nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, 5))),
        ("layernorm, linear", nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5))),
    ):
        user = over(head)
        named = parse_head_layers(layers)
        yield Case(f"layers {layers}", state_of(user), user, {"arch": TINY, "head": HeadRequest(layers=named[0])})
        if layers != "relu,linear":
            yield Case(f"unsaid layers {layers}", state_of(user), None, {"arch": TINY}, code="E449")
    inner = features_of(7)
    user = Apart(lambda s, x: s.fc(torch.relu(s.backbone(x))), backbone=inner, fc=settle(nn.Linear(7, 5))).eval()
    yield Case("a head behind the body's own", state_of(user), None, {"arch": TINY}, code="E449")
    named = parse_head_layers("linear,relu,linear")
    yield Case(
        "a head behind the body's own, named",
        state_of(user),
        user,
        {"arch": TINY, "head": HeadRequest(layers=named[0])},
    )
    weight = torch.rand(5, WIDTH)
    cosine = features_of()
    arc = state_of(cosine) | {"arc_margin.weight": weight}
    normal = nn.functional.normalize
    yield Case("a margin loss", arc, None, {"arch": TINY}, code="E449")
    margin, scale = parse_head_layers("cosine:30")
    yield Case(
        "a cosine head",
        arc,
        lambda x: 30 * nn.functional.linear(normal(cosine(x)), normal(weight)),
        {"arch": TINY, "head": HeadRequest(layers=margin, scale=scale)},
    )
    for factor in ("logit_scale", "fc.sigma"):
        scaled = prefixed("backbone.", state_of(cosine)) | {"fc.weight": weight, factor: torch.tensor(30.0)}
        yield Case(f"a factor of cosines: {factor}", scaled, None, {"arch": TINY}, code="E449")
        yield Case(
            f"a factor of cosines, named: {factor}",
            scaled,
            lambda x: 30 * nn.functional.linear(normal(cosine(x)), normal(weight)),
            {"arch": TINY, "head": HeadRequest(layers=margin, scale=scale)},
        )
    for name, matrix in (
        ("arc_face.kernel", weight.T.contiguous()),
        ("margin.W", weight),
        ("fc.weight", normal(weight)),
    ):
        named_so = prefixed("backbone.", state_of(cosine)) | {name: matrix}
        yield Case(f"a margin loss: {name}", named_so, None, {"arch": TINY}, code="E449")
    said = {"net": prefixed("backbone.", state_of(cosine)) | {"fc.weight": weight}, "args": {"loss": "ArcFaceLoss"}}
    yield Case("a margin loss in the metadata", said, None, {"arch": TINY}, code="E449")
    yield from rivals()
    yield from fastai_heads()
    one = body(1)
    yield Case("one logit", state_of(one), lambda x: torch.cat([0 * one(x), one(x)], 1), {"arch": TINY})
    both = body(global_pool="catavgmax")
    yield Case("average and maximum", state_of(both), both, {"arch": TINY})
    grey = body(in_chans=1)
    yield Case("one channel", state_of(grey), grey, {"arch": TINY}, channels=1)
    four = body(in_chans=4)
    yield Case("four channels", prefixed("net.", state_of(four)), four, {"arch": TINY}, channels=4)


def fastai_heads() -> Iterator[Case]:
    """Learners of fastai with heads of other widths: ``create_head`` in fastai/vision/learner.py."""

    def block(width: int, out: int, rate: float, *more: nn.Module) -> list[nn.Module]:
        dropout = [nn.Dropout(rate)] if rate else []
        return [nn.BatchNorm1d(width), *dropout, nn.Linear(width, out, bias=False), *more]

    class Concat(nn.Module):
        def forward(self, maps: torch.Tensor) -> torch.Tensor:
            return torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1)

    mean, both = nn.AdaptiveAvgPool2d(1), Concat()
    for name, pool, layers in (
        (
            "two hidden layers",
            both,
            [*block(2 * WIDTH, 16, 0.2, nn.ReLU()), *block(16, 8, 0.2, nn.ReLU()), *block(8, 5, 0.5)],
        ),
        ("average alone", mean, [*block(WIDTH, 16, 0.2, nn.ReLU()), *block(16, 5, 0.5)]),
        ("no dropout", both, [*block(2 * WIDTH, 16, 0, nn.ReLU()), *block(16, 5, 0)]),
        ("bn_final", both, [*block(2 * WIDTH, 16, 0.2, nn.ReLU()), *block(16, 5, 0.5, nn.BatchNorm1d(5))]),
    ):
        net = body(0, global_pool="")
        torch.manual_seed(4)
        head = settle(nn.Sequential(pool, nn.Flatten(), *layers))
        user = Apart(lambda s, x: s.head(s.body(x)), body=net, head=head).eval()
        state = prefixed("0.model.", state_of(net)) | prefixed("1.", state_of(head))
        yield Case(f"fastai's head: {name}", {"model": state, "opt": {}}, user, {"arch": TINY})


class GeM(nn.Module):
    """The pooling of contest notebooks, with its exponent as a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 2.5))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return nn.functional.adaptive_avg_pool2d(maps.clamp(min=1e-6).pow(self.p), 1).pow(1 / self.p).flatten(1)


def copies() -> Iterator[Case]:
    """Checkpoints that hold a head once more, or a loss, as whole modules beside the network."""
    named = collections.OrderedDict(
        fc1=nn.Linear(WIDTH, 8), relu=nn.ReLU(), drop=nn.Dropout(0.2), fc2=nn.Linear(8, 5), output=nn.LogSoftmax(dim=1)
    )
    head, net = settle(nn.Sequential(named)), body()
    net.fc = head

    def logits(images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = head[:-1](net.forward_head(net.forward_features(images), pre_logits=True))
        return found

    content = {
        "arch": TINY,
        "classifier": head,
        "state_dict": state_of(net),
        "class_to_idx": dict(zip("abcde", range(5), strict=True)),
    }
    yield Case("head of named layers once more as a module", content, logits)
    plain = body()
    yield Case("head once more as a module", {"model": state_of(plain), "classifier": plain.fc}, plain, {"arch": TINY})
    loss = nn.CrossEntropyLoss(weight=torch.ones(5))
    yield Case("a loss as a module beside", [nn.ModuleList([plain]), loss, {"epoch": 1}], plain, {"arch": TINY})
    other = nn.Linear(WIDTH, 5)
    yield Case(
        "another head as a module", {"model": state_of(plain), "classifier": other}, None, {"arch": TINY}, code="E449"
    )


def rivals() -> Iterator[Case]:
    """Layers beside the head that change the answer, and are never left out as if they did not."""
    for name in ("pool", "avg", "neck.0"):
        maps, pool, head = body(0, global_pool=""), GeM(), settle(nn.Linear(WIDTH, 5))
        state = prefixed("backbone.", state_of(maps)) | {f"{name}.p": pool.p.detach()} | prefixed("fc.", state_of(head))
        user = Apart(lambda s, x: s.fc(s.pool(s.backbone(x))), backbone=maps, pool=pool, fc=head).eval()
        yield Case(f"generalized mean: {name}", state, user, {"arch": TINY})
    yield Case("two generalized means", state | {"pool2.p": torch.ones(1)}, None, {"arch": TINY}, code="E449")
    whole = prefixed("net.", state_of(body()))
    for name, layer, code in (
        ("a normalization of the image", settle(nn.BatchNorm2d(3)), "E410"),
        ("a convolution to three channels", nn.Conv2d(4, 3, 1), "E410"),
        ("prelu", nn.PReLU(), "E410"),
        ("attention", nn.Conv2d(WIDTH, 1, 1), "E410"),
        ("a second head", nn.Linear(WIDTH, 7), "E449"),
        ("a layer behind the head", nn.Linear(5, 5), "E449"),
    ):
        label = "att" if name == "attention" else "extra"
        yield Case(f"rival: {name}", whole | prefixed(f"{label}.", state_of(layer)), None, {"arch": TINY}, code=code)
    second = settle(nn.Linear(WIDTH, 7))
    inner = features_of()
    named = whole | prefixed("mine.", state_of(second))
    inner.load_state_dict({k: t for k, t in state_of(body()).items() if not k.startswith("fc.")})
    user = Apart(lambda s, x: s.mine(s.net(x)), net=inner, mine=second).eval()
    yield Case("the second head, named", named, user, {"arch": TINY, "head": HeadRequest(name="mine")})


def axes() -> Iterator[Case]:
    def joint(scores: list[torch.Tensor]) -> torch.Tensor:
        logs = [one.log_softmax(1) for one in scores]
        return (logs[0][:, :, None, None] + logs[1][:, None, :, None] + logs[2][:, None, None, :]).flatten(1)

    for names in (
        ("mask", "gender", "age"),
        ("mask_fc", "gender_fc", "age_fc"),
        ("head_age", "head_mask", "head_gender"),
    ):
        sizes = {"mask": 3, "gender": 2, "age": 3}
        order = {axis: next(name for name in names if axis in name) for axis in sizes}
        parts = {name: settle(nn.Linear(WIDTH, sizes[next(a for a in sizes if a in name)])) for name in names}
        user = Apart(lambda s, x: x, backbone=features_of(), **parts).eval()

        def run(x: torch.Tensor, user: Any = user, order: dict[str, str] = order) -> torch.Tensor:
            pooled = user.backbone(x)
            return joint([getattr(user, order[axis])(pooled) for axis in ("mask", "gender", "age")])

        yield Case(f"heads {', '.join(names)}", state_of(user), run, {"arch": TINY})
        yield Case(
            f"heads {', '.join(names)} and labels",
            state_of(user),
            run,
            {"arch": TINY, "head": HeadRequest(labels=MASK18)},
        )
    numbered = nn.ModuleList([settle(nn.Linear(WIDTH, size)) for size in (3, 2, 3)])
    user = Apart(lambda s, x: joint([head(s.backbone(x)) for head in s.heads]), backbone=features_of(), heads=numbered)
    yield Case("heads in a list, unsaid", state_of(user), None, {"arch": TINY}, code="E449")
    yield Case("heads in a list", state_of(user), user.eval(), {"arch": TINY, "head": HeadRequest(labels=MASK18)})
    eight = body(8)
    yield Case(
        "one head of eight",
        state_of(eight),
        lambda x: joint(list(eight(x).split([3, 2, 3], 1))),
        {"arch": TINY, "head": HeadRequest(labels=MASK18)},
    )
    two = Apart(
        lambda s, x: s.second(s.backbone(x)),
        backbone=features_of(),
        first=settle(nn.Linear(WIDTH, 4)),
        second=settle(nn.Linear(WIDTH, 6)),
    ).eval()
    yield Case("two heads", state_of(two), None, {"arch": TINY}, code="E449")
    yield Case("one of two heads", state_of(two), two, {"arch": TINY, "head": HeadRequest(name="second")})


# averaged weights


def averages() -> Iterator[Case]:
    net = body()
    ema = changed(net)
    raw, mean = state_of(net), state_of(ema)
    only = {name: parameter.data for name, parameter in ema.named_parameters()}
    listed = [parameter.data for parameter in ema.parameters()]
    kept = [parameter.data for parameter in net.parameters()]
    lightning = {"current_model_state": prefixed("model.", raw), "averaging_state": {"n_averaged": torch.tensor(3)}}
    forms: dict[str, object] = {
        "timm": {"state_dict": raw, "state_dict_ema": mean},
        "ema_state_dict": {"state_dict": raw, "ema_state_dict": mean},
        "model_ema": {"model": raw, "model_ema": mean, "epoch": 1},
        "ema.module": {"model": raw, "ema": prefixed("module.", mean)},
        "params_ema": {"params": raw, "params_ema": mean},
        "swa": {"state_dict": raw, "swa_state_dict": mean},
        "swa_model": {"model": raw, "swa_model": {"n_averaged": torch.tensor(5)} | prefixed("module.", mean)},
        "AveragedModel beside": {"model": raw, "avg": {"n_averaged": torch.tensor(5)} | prefixed("module.", mean)},
        "AveragedModel under any name": {"a": raw, "b": {"n_averaged": torch.tensor(5)} | prefixed("module.", mean)},
        "emaModel": {"netState": raw, "emaModel": mean},
        "averaged": {"last": raw, "averaged": mean},
        "average_model": {"state_dict": raw, "callbacks": {"StochasticWeightAveraging": {"average_model_state": mean}}},
        "WeightAveraging": {"state_dict": prefixed("model.", mean)} | lightning,
        "a callback": {
            "state_dict": prefixed("model.", raw),
            "callbacks": {"EMA{'decay': 0.99}": {"ema_state_dict": prefixed("model.", mean)}},
        },
        "in the module": {"state_dict": prefixed("model.", raw) | prefixed("ema_model.", mean)},
        "in the module, apart": {
            "state_dict": prefixed("net.", raw) | prefixed("ema.module.", mean) | {"ema.n": torch.tensor(1)}
        },
        "ema_pytorch": prefixed("online_model.", raw)
        | prefixed("ema_model.", mean)
        | {"initted": torch.tensor(True), "step": torch.tensor(9)},
        "mmengine": {
            "meta": {"mmengine_version": "0.10"},
            "message_hub": {},
            "state_dict": mean,
            "ema_state_dict": {"steps": torch.tensor(1)} | prefixed("module.", raw),
        },
        "mean teacher": {"state_dict": raw, "mean_teacher": mean},
        "composer": {"state": {"model": raw, "algorithms": [("EMA", {"ema_model": {"named_parameters_dict": only}})]}},
        "shadow": {"model": raw, "ema": {"decay": 0.99, "shadow": only, "backup": {}}},
        "shadow with a backup": {"model": raw, "ema": {"shadow": only, "backup": dict(net.named_parameters())}},
        "shadow at the top": {"model": prefixed("module.", raw), "ema_shadow": prefixed("module.", only)},
        "torch_ema": {
            "model": raw,
            "ema": {"decay": 0.9, "num_updates": 3, "shadow_params": listed, "collected_params": None},
        },
        "torch_ema, stored": {"model": raw, "ema": {"shadow_params": listed, "collected_params": kept}},
        "a callback of torch_ema": {
            "state_dict": prefixed("model.", raw) | {"criterion.weight": torch.ones(5)},
            "ema_state": {"shadow_params": listed},
        },
        "a list of a callback": {
            "state_dict": prefixed("net.", raw),
            "callbacks": {"EMACallback": {"ema_weights": listed}},
        },
        "NeMo": {"state_dict": prefixed("net.", raw), "optimizer_states": [{"state": {}, "ema": tuple(listed)}]},
        "LitEma": prefixed("model.", raw)
        | {f"model_ema.{name.replace('.', '')}": t for name, t in only.items()}
        | {"model_ema.decay": torch.tensor(0.9)},
    }
    for name, content in forms.items():
        yield Case(f"average: {name}", content, ema, {"arch": TINY}, weights="ema")
        yield Case(f"raw beside an average: {name}", content, net, {"arch": TINY, "weights": "raw"})
    alone = {"n_averaged": torch.tensor(5)} | prefixed("module.", mean)
    yield Case("AveragedModel alone", alone, ema, {"arch": TINY}, weights="ema")
    hook = mean | {f"ema_{name.replace('.', '_')}": tensor for name, tensor in dict(net.named_parameters()).items()}
    yield Case(
        "mmcv's EMAHook",
        {"meta": {"mmcv_version": "1.7"}, "state_dict": hook},
        ema,
        {"arch": TINY, "weights": None},
        weights="ema",
    )
    unfit = {"model": raw, "ema": {"shadow_params": listed[:-1]}}
    yield Case("an average that does not fit", unfit, None, {"arch": TINY}, code="E430")
    yield Case("raw beside an average that does not fit", unfit, net, {"arch": TINY, "weights": "raw"})
    pair = prefixed("student.", raw) | prefixed("teacher.", mean)
    yield Case("student and teacher", pair, None, {"arch": TINY}, code="E448")
    yield Case("the teacher", pair, ema, {"arch": TINY, "weights": "teacher"})
    apart = {"backbone." + k: t for k, t in raw.items() if not k.startswith("fc.")} | {
        "head." + k[3:]: t for k, t in raw.items() if k.startswith("fc.")
    }
    ema_apart = {"ema_backbone." + k: t for k, t in mean.items() if not k.startswith("fc.")} | {
        "ema_head." + k[3:]: t for k, t in mean.items() if k.startswith("fc.")
    }
    group = {"train_mode": True, "betas": (0.9, 0.999), "params": [0]}
    free = {"model": raw, "optimizer": {"state": {0: {"z": listed[0]}}, "param_groups": [group]}}
    yield Case("schedule-free, in training mode", free, None, {"arch": TINY}, code="E452")
    yield Case("schedule-free, as it is", free, net, {"arch": TINY, "weights": "raw"})
    yield Case("an average with its head apart", apart | ema_apart, ema, {"arch": TINY}, weights="ema")
    yield Case("raw with its head apart", apart | ema_apart, net, {"arch": TINY, "weights": "raw"})


# weights in parts


def _prune(layer: Any) -> None:
    halve: Any = prune.random_unstructured
    halve(layer, "weight", 0.5)


def parts() -> Iterator[Case]:
    for name, change in (
        ("pruned", _prune),
        ("weight_norm", parametrizations.weight_norm),
        ("spectral_norm", parametrizations.spectral_norm),
    ):
        net = body()
        torch.manual_seed(2)
        for module in list(net.modules()):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                change(module)
        net.eval()
        yield Case(name, {"state_dict": prefixed("model.", state_of(net))}, net, {"arch": TINY})
    quantized = state_of(body()) | {"fc._packed_params._packed_params": torch.ones(2)}
    yield Case("quantized", quantized, None, {"arch": TINY}, code="E417")
    low = state_of(body()) | {"fc.lora_A.weight": torch.rand(2, WIDTH), "fc.lora_B.weight": torch.rand(5, 2)}
    yield Case("LoRA", low, None, {"arch": TINY}, code="E417")
    yield from lora()


def lora() -> Iterator[Case]:
    """Networks whose updates lie beside their base weights, as peft names them (peft/tuners/lora/layer.py)."""
    torch.manual_seed(3)
    net = body()
    merged = copy.deepcopy(net)
    state = state_of(net)
    wrapped: State = {}
    for key, tensor in state.items():
        if key.endswith("conv2.weight"):
            layer, (out, taken, height, width) = key.removesuffix(".weight"), tensor.shape
            down, up = 0.1 * torch.randn(4, taken, height, width), torch.randn(out, 4, 1, 1)
            wrapped |= {f"{layer}.base_layer.weight": tensor}
            wrapped |= {f"{layer}.lora_A.default.weight": down, f"{layer}.lora_B.default.weight": up}
            update = (up.flatten(1) @ down.flatten(1)).reshape(tensor.shape)
            merged.get_parameter(key).data.add_(update * 8 / 4)
        elif key.startswith("fc."):
            leaf = key.removeprefix("fc.")
            wrapped |= {f"fc.original_module.{leaf}": torch.zeros_like(tensor)}
            wrapped |= {f"fc.modules_to_save.default.{leaf}": tensor}
        else:
            wrapped[key] = tensor
    whole = prefixed("base_model.model.", wrapped)
    config = {"r": 4, "lora_alpha": 8, "use_rslora": False, "peft_type": "LORA"}
    yield Case("LoRA of peft", {"model": whole, "peft_config": {"default": config}}, merged, {"arch": TINY})
    for name, content in (
        ("without its alpha", {"model": whole}),
        ("DoRA", {"model": whole, "peft_config": config | {"use_dora": True}}),
        ("ranks of their own", {"model": whole, "peft_config": config | {"alpha_pattern": {"layer1": 2}}}),
        ("two adapters", {"model": whole | {"base_model.model.fc.lora_A.b.weight": down}, "peft_config": config}),
    ):
        yield Case(f"LoRA: {name}", content, None, {"arch": TINY}, code="E417")


def all_cases() -> list[Case]:
    """Return every case, in a fixed order."""
    makers = (wrappers, places, extras, heads, copies, axes, averages, parts)
    return [case for maker in makers for case in maker()]
