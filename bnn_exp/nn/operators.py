"""Operations with two or three forms: a definition in plain torch, Triton's kernels for a GPU, a compiled form for a CPU.

Each operation is a torch operator `torch.ops.bnn_exp.NAME`. A tensor on a GPU gets the kernels if Triton can run, a tensor on
a CPU the compiled form if there is one, every other tensor the definition. Tests compare the forms. A TorchDispatchMode sees
one call for each operation, so tests can record a step, and count the launches of a step.
"""

import pkgutil
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from bnn_exp.config.installed import has_triton

LAUNCHES: dict[str, int] = {}  # the number of kernels that each operation launches on a GPU, by the name of the operation
kernels_everywhere = False  # tests set this to True: then tensors on a CPU go to the kernels, which Triton interprets
LEAST = 2**22  # elements for which a definition takes about as long as numba's import (0.4 s); see `numba_pays`
_CALL = 2**13  # elements for which a definition takes as long as for an empty tensor
_worked = 0  # elements of all operations so far
_library = torch.library.Library("bnn_exp", "FRAGMENT")
_resolved = cache(pkgutil.resolve_name)


def numba_pays(numbers: int) -> bool:
    """Returns True if an operation on this number of elements takes its compiled form.

    The first operations of a process take their definitions, so a short run never imports numba. After LEAST elements, or once
    numba is loaded, all operations take their compiled forms.
    """
    global _worked
    _worked += numbers + _CALL
    return _worked >= LEAST or "bnn_exp.bits.cpu.kernels.compiler" in sys.modules


def operator(
    arguments: str,
    kernels: str | None,
    launches: int,
    fake: Callable | None = None,
    cpu: str | None = None,
    numbers: Callable[..., int] | None = None,
) -> Callable[[Callable], Callable]:
    """Makes a torch operator of the decorated function, which is the definition in plain torch.

        @operator("(Tensor(a!) w, Tensor which) -> ()", kernels="bnn_exp.bits.cuda.flips:flip", launches=1)
        def flip(w: Tensor, which: Tensor) -> None:
            ...

    Calls of the decorated function go through torch's dispatcher. The operator has no gradient of its own: a
    torch.autograd.Function calls the operator. The name of the function, which must be unique, is the name of the operator.

    Args:
        arguments: the schema of the operator without its name. `Tensor(a!)` marks a tensor that the operator writes to.
        kernels: "package.module:function" of the form for a GPU, with the same arguments. The first call imports the module.
            None: a GPU takes the definition, whose operators have kernels.
        launches: the number of kernels that this form launches.
        fake: returns empty tensors with the shapes and dtypes of the results, for torch.compile. Without results: not needed.
        cpu: "package.module:function" of the compiled form for a CPU, with the same arguments. The first call imports the
            module. None: a CPU takes the definition.
        numbers: returns the number of elements that the operation works on, from its arguments. A CPU takes the compiled form
            where it pays (`numba_pays`); both forms must give the same bits. None: a CPU always takes the compiled form.
    """

    def decorate(definition: Callable) -> Callable:
        name = definition.__name__

        def on_gpu(*given: Any, **named: Any) -> Any:
            with torch.cuda.device_of(next(x for x in given if isinstance(x, Tensor))):  # Triton uses the current GPU
                return (pkgutil.resolve_name(kernels) if kernels and has_triton() else definition)(*given, **named)

        def elsewhere(*given: Any, **named: Any) -> Any:
            return (on_gpu if kernels_everywhere else definition)(*given, **named)

        def on_cpu(*given: Any, **named: Any) -> Any:
            if kernels_everywhere:
                return on_gpu(*given, **named)
            pays = numbers is None or numba_pays(numbers(*given, **named))
            return (_resolved(str(cpu)) if pays else definition)(*given, **named)

        LAUNCHES[name] = launches
        _library.define(name + arguments)
        _library.impl(name, elsewhere, "CompositeExplicitAutograd")
        _library.impl(name, on_gpu, "CUDA")
        if cpu:
            _library.impl(name, on_cpu, "CPU")
        torch.library.register_fake(f"bnn_exp::{name}", fake or (lambda *given, **named: None), lib=_library)
        call = getattr(torch.ops.bnn_exp, name)
        # An exported program runs where there are no operators of bnn_exp. It may write to tensors, as definitions do.
        return wraps(definition)(
            lambda *given, **named: (definition if torch.compiler.is_exporting() else call)(*given, **named)
        )

    return decorate
