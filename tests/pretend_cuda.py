"""A CUDA device that is none: its tensors keep their numbers on the CPU, and fail where those of a GPU would.

Where no GPU is there, `pretend_cuda()` shows where code mixes devices: an operation on tensors of two devices, a CPU
generator for random numbers of the device, `.numpy()` on a tensor of the device; and some of what CUDA has not: products of
integers, gradients of recurrent layers in evaluation mode. It counts too where the host would wait for the device. It knows
nothing of kernels, memory, streams, compilation or other processes, and the numbers are the CPU's: what holds here may
still fail on a GPU.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any, NoReturn
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)

_COPIES = {"_to_copy", "copy_"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Where what is indexed lies on the device, its indices may lie on the CPU."""
_TAKE_A_SCALAR = {
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "masked_fill",
    "masked_fill_",
    "where",
    "fill",
    "fill_",
}
"""Beside the pointwise operations: what takes a tensor of no dimension from the CPU."""
_PRODUCTS = {"mm", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "mv", "dot", "addr", "convolution"}
_CPU_ONLY = {"histogram", "histogramdd"}
_WAIT = {
    *("_local_scalar_dense", "nonzero", "masked_select", "equal", "bincount", "repeat_interleave"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}
"""The host needs what they give, or how much it is, before it can go on."""
_RECURRENT = {"gru", "lstm", "rnn_tanh", "rnn_relu"}

# https://docs.pytorch.org/docs/stable/amp.html#cuda-op-specific-behavior
_LOWERED = {
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "addmm", "baddbmm", "einsum"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose2d", "scaled_dot_product_attention", *_RECURRENT),
}
_RAISED = {
    *("exp", "log", "log1p", "expm1", "pow", "__pow__", "rsqrt", "reciprocal", "softplus", "layer_norm", "group_norm"),
    *("softmax", "log_softmax", "logsumexp", "cross_entropy", "nll_loss", "mse_loss", "l1_loss", "smooth_l1_loss"),
    *("huber_loss", "kl_div", "binary_cross_entropy_with_logits", "cosine_similarity", "cdist", "dist", "norm"),
    *("sum", "prod", "cumsum", "cumprod"),
}


class DeviceTensor(Tensor):
    """A tensor that calls itself one of cuda:0. held: its numbers, on the CPU; a view's are part of those of its base.

    To torch's C++ it is a tensor on "meta": for one on "cuda", autograd would ask a driver that is not there.
    """

    held: Tensor
    device = property(lambda _: CUDA)
    is_cuda = property(lambda _: True)
    is_cpu = is_meta = property(lambda _: False)

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        with torch.inference_mode(held.is_inference()):  # a view of an ordinary tensor is one in inference mode too
            made = Tensor._make_wrapper_subclass(
                cls,
                held.shape,
                strides=held.stride(),
                storage_offset=held.storage_offset(),
                dtype=held.dtype,
                device="meta",
            )
        made.held = held
        return made

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, new: Tensor) -> None:
        if not isinstance(new, DeviceTensor):
            raise TypeError("a tensor of the device cannot be given data of the CPU")
        Tensor.data.__set__(self, new)
        self.held = new.held

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    def __array__(self, *_: Any) -> NoReturn:
        self.numpy()
        raise AssertionError

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            copied: Tensor = DeviceTensor(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if isinstance(self, nn.Parameter):
                copied = nn.Parameter(copied.detach(), self.requires_grad)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, _: Any) -> NoReturn:
        raise NotImplementedError("a tensor of the pretended device cannot be pickled")

    def __repr__(self) -> str:
        return f"DeviceTensor({self.held})"

    # That it can be taken apart makes nn.Module.to swap a parameter's contents, which leaves the parameter the object it was.
    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(parts: dict[str, Tensor], *_: Any) -> DeviceTensor:
        return DeviceTensor(parts["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, _types: Any, _args: Any = (), _kwargs: Any = None) -> NoReturn:
        raise AssertionError(f"{func} on a tensor of the pretended device, outside of pretend_cuda()")


class PretendedDevice(TorchDispatchMode):
    """Runs on the CPU what is asked of the device, or raises what CUDA would.

    faults: every such error, also where somebody caught it. waits: how often the host would have waited, by operation.
    generator: the device's own random state. cudnn: whether cuDNN is on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.waits: Counter[str] = Counter()
        self.generator = torch.Generator()
        self.cudnn = True

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        given = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
        if name in {"is_pinned", "_pin_memory"}:
            return self._pinned(name, args[0])
        asked = None if kwargs.get("device") is None else torch.device(kwargs["device"])
        comes = any(isinstance(t, DeviceTensor) for t in given)
        goes = comes if asked is None else asked.type != "cpu"
        if not comes and not goes:
            return func(*args, **kwargs)
        if func._can_decompose():  # in inference mode; each part of it is looked at by itself
            with self:
                return func.decompose(*args, **kwargs)
        self._check(func, name, given, args, kwargs, goes)
        self._count(name, given, args, goes)
        kwargs |= {key: value for key, value in (("device", CPU), ("pin_memory", False)) if key in kwargs}
        on_cpu, options_on_cpu = tree_map_only(DeviceTensor, lambda t: t.held, (args, kwargs))
        with self._randomness(func):
            found = func(*on_cpu, **options_on_cpu)
        if name == "copy_":
            return args[0]
        if not goes:
            return found
        found = tree_map_only(Tensor, DeviceTensor, found)
        return found if asked is not None else return_and_correct_aliasing(func, args, kwargs, found)

    def fault(self, error: Exception) -> NoReturn:
        self.faults.append(str(error))
        raise error

    def _check(self, func: Any, name: str, given: Sequence[Tensor], args: Any, kwargs: Any, goes: bool) -> None:
        drawn_from = [x for x in (*args, *kwargs.values()) if isinstance(x, torch.Generator)]
        if goes and drawn_from:
            self.fault(RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'"))
        if name in _COPIES:
            return
        if name in _CPU_ONLY:
            self.fault(NotImplementedError(f"Could not run 'aten::{name}' with arguments from the 'CUDA' backend"))
        if name in _PRODUCTS and not given[0].is_floating_point():
            self.fault(RuntimeError(f'"{name}_cuda" not implemented for {given[0].dtype}'))
        elsewhere = [t for t in given if not isinstance(t, DeviceTensor)]
        if name in _INDEXING and isinstance(args[0], DeviceTensor):
            elsewhere = [t for t in elsewhere if not any(t is index for index in args[1])]
        changed = _changed(func, args, kwargs)
        a_scalar_will_do = torch.Tag.pointwise in func.tags or name in _TAKE_A_SCALAR
        if any(t.ndim or not a_scalar_will_do or any(t is c for c in changed) for t in elsewhere):
            self.fault(
                RuntimeError(
                    "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                    f"(when checking argument in {func})"
                )
            )

    def _count(self, name: str, given: Sequence[Tensor], args: Any, goes: bool) -> None:
        if name in _COPIES:
            goes = isinstance(args[0], DeviceTensor) if name == "copy_" else goes
            source = given[-1]
            at_once = goes and (getattr(source, "pinned", False) or not source.ndim)
            if isinstance(source, DeviceTensor) != goes and not at_once:
                self.waits["copy to the device" if goes else "copy from the device"] += 1
        elif name in _WAIT or (name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])):
            self.waits[name] += 1
        elif name in _INDEXING and any(i is not None and not isinstance(i, DeviceTensor) for i in args[1]):
            self.waits["copy to the device"] += 1

    def _pinned(self, name: str, tensor: Tensor) -> Any:
        if name == "is_pinned":
            return getattr(tensor, "pinned", False)
        if isinstance(tensor, DeviceTensor):
            self.fault(RuntimeError("cannot pin 'torch.cuda.FloatTensor' only dense CPU tensors can be pinned"))
        copied: Any = tensor.clone()
        copied.pinned = True
        return copied

    @contextlib.contextmanager
    def _randomness(self, func: Any) -> Iterator[None]:
        """The device draws from its own state."""
        if torch.Tag.nondeterministic_seeded not in func.tags:
            yield
            return
        of_the_cpu = torch.default_generator.get_state()
        torch.default_generator.set_state(self.generator.get_state())
        try:
            yield
        finally:
            self.generator.set_state(torch.default_generator.get_state())
            torch.default_generator.set_state(of_the_cpu)

    @contextlib.contextmanager
    def cudnn_flags(self, *, enabled: bool = False, **_: Any) -> Iterator[None]:
        before, self.cudnn = self.cudnn, enabled
        try:
            yield
        finally:
            self.cudnn = before


class _Calls(TorchFunctionMode):
    """What torch decides above its dispatcher by the device it believes in: `.to` that copies nothing, autocast, cuDNN."""

    def __init__(self, device: PretendedDevice) -> None:
        super().__init__()
        self.pretended = device

    def __torch_function__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is Tensor.to:
            return _to(*args, **kwargs)
        if kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cuda":
            kwargs = kwargs | {"device": CUDA}  # of "cuda" without a number, torch would ask the driver which
        if torch.is_autocast_enabled("cuda") and (name in _LOWERED or name in _RAISED):
            dtype = torch.get_autocast_dtype("cuda") if name in _LOWERED else torch.float32
            args, kwargs = tree_map_only(DeviceTensor, lambda t: _cast(t, dtype), (args, kwargs))
        found = func(*args, **kwargs)
        if name in _RECURRENT and isinstance(found[0], DeviceTensor) and found[0].requires_grad:
            training = args[-3] if isinstance(args[3], bool) else args[-2]  # with a batch, or with packed sequences
            if self.pretended.cudnn and not training:
                error = RuntimeError("cudnn RNN backward can only be called in training mode")
                found[0].register_hook(lambda _: self.pretended.fault(error))
        return found


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.dtype in {torch.float32, torch.bfloat16} else tensor


def _to(tensor: Tensor, *how: Any, copy: bool = False, **named: Any) -> Tensor:
    if how and isinstance(how[0], Tensor):
        how = (how[0].device, how[0].dtype, *how[1:])
    device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*how, **named)
    here = isinstance(tensor, DeviceTensor)
    stays = device is None or (device.type == "cuda") == here
    laid_out = memory_format is None or tensor.is_contiguous(memory_format=memory_format)
    if here and stays and dtype in {None, tensor.dtype} and laid_out and not copy:
        return tensor
    device = CUDA if (here and stays) or (device is not None and device.type == "cuda") else device
    format_ = memory_format or torch.preserve_format
    return Tensor.to(tensor, device=device, dtype=dtype, non_blocking=non_blocking, copy=copy, memory_format=format_)


def _changed(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """The arguments that `func` writes to."""
    written = [(i, a.name) for i, a in enumerate(func._schema.arguments) if a.alias_info and a.alias_info.is_write]
    return tree_flatten([args[i] if i < len(args) else kwargs.get(name) for i, name in written])[0]


def _swapping(apply: Any) -> Any:
    """As on a GPU, where `Module.to` leaves a parameter the object it was: on the way back to the CPU too."""

    def applied(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return apply(module, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return applied


@contextlib.contextmanager
def pretend_cuda() -> Iterator[PretendedDevice]:
    """torch as on a machine with one GPU, in this thread; not for code that uses the device "meta".

    >>> with pretend_cuda():
    ...     str(torch.ones(2, device="cuda").device)
    'cuda:0'
    """
    device = PretendedDevice()
    about = SimpleNamespace(name="Pretended GPU", total_memory=8 << 30, major=9, minor=0, multi_processor_count=1)
    of_cuda: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda _=None: about.name,
        "get_device_properties": lambda _=None: about,
        "is_bf16_supported": lambda including_emulation=True: True,
        "synchronize": lambda _=None: device.waits.update(["synchronize"]),
        "manual_seed": device.generator.manual_seed,
        "manual_seed_all": device.generator.manual_seed,
        "get_rng_state": lambda _=None: device.generator.get_state(),
        "set_rng_state": lambda state, _=None: device.generator.set_state(state),
        "_exchange_device": lambda _: 0,
        "_maybe_exchange_device": lambda _: 0,
    }
    stream = SimpleNamespace(is_capturing=lambda: False)
    with contextlib.ExitStack() as stack:

        def stand_in(where: Any, name: str, what: Any) -> None:
            stack.enter_context(mock.patch.object(where, name, what))

        for name, what in of_cuda.items():
            stand_in(torch.cuda, name, what)
        stand_in(torch.accelerator, "current_stream", lambda _=None: stream)
        stand_in(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        stand_in(torch.backends.cudnn, "flags", device.cudnn_flags)
        stand_in(nn.Module, "_apply", _swapping(nn.Module._apply))
        # The functions of cuDNN are other ones than the CPU's: torch takes its own in their place.
        stack.callback(torch._C._set_cudnn_enabled, torch._C._get_cudnn_enabled())
        torch._C._set_cudnn_enabled(False)
        # torch.tensor(..., device="cuda") then makes a tensor of the CPU and moves it, by operations that can be seen.
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(_Calls(device))
        stack.enter_context(device)
        yield device
