"""A recorded launch compiled for an H100 or H200 (sm_90) where there is no GPU, and what the chip would run."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton.backends.nvidia as nvidia
from nested_kernels.launch import Launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

TOOLS = Path(nvidia.__file__).parent / "bin"
HOPPER = GPUTarget("cuda", 90, 32)
SHARED = 232_448  # bytes that a block may have there
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
TYPES |= {torch.int32: "*i32", torch.int64: "*i64"}


@dataclass
class Compiled:
    name: str
    registers: int
    stack: int  # bytes; more than 0 is what does not fit into registers
    shared: int  # bytes
    tensor_cores: int  # instructions
    wide_loads: int  # of more than one element
    vectors: int  # loads and stores of 16 bytes
    products: bool  # does it multiply matrices?


def compile_ahead(launch: Launch) -> Compiled:
    kernel, arguments = launch.kernel, launch.arguments
    signature, constants, hints = {}, {}, {}
    fixed = {kernel.arg_names.index(str(n)) if isinstance(n, str) else n for n in kernel.do_not_specialize or ()}
    for at, name in enumerate(kernel.arg_names):
        if name in launch.constants:
            signature[name], constants[(at,)] = "constexpr", launch.constants[name]
        elif isinstance(value := arguments[at], torch.Tensor):
            signature[name], hints[(at,)] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif value == 1 and at not in fixed:
            signature[name], constants[(at,)] = "constexpr", 1
        else:
            signature[name] = "i32"
            if value % 16 == 0 and at not in fixed:
                hints[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=hints)
    made = compile(source, target=HOPPER, options={"num_warps": launch.warps, "num_stages": launch.stages})
    usage, code = inspected(made.asm["cubin"])
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return Compiled(
        name=kernel.__name__,
        registers=int(found[1]),
        stack=int(found[2]),
        shared=made.metadata.shared,
        tensor_cores=len(re.findall(r"\b(?:HGMMA|HMMA)\.", code)),
        wide_loads=len(re.findall(r"\bLDG\.E\.(?:\w+\.)*(?:64|128)\b|\bLDGSTS\S*\.(?:64|128)\b|\bUTMALDG", code)),
        vectors=len(re.findall(r"\b(?:LDG|STG)\.E\.(?:\w+\.)*128\b", code)),
        products="tt.dot" in made.asm["ttir"],
    )


def inspected(cubin: bytes) -> tuple[str, str]:
    """What it uses, and its instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said: list[Any] = [
            subprocess.run([TOOLS / tool, flag, file.name], capture_output=True, text=True, check=True).stdout
            for tool, flag in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        ]
    return said[0], said[1]
