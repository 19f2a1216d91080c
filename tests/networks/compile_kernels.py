"""Compile every kernel for a GPU that is not there: `python -m networks.compile_kernels CAPABILITY`, from tests/.

Prints for each kernel, dtype and set of switches what it takes of a GPU: registers, memory.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stylegan.networks import kernels

TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}
DUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Compiled:
    """A kernel that is compiled, not started, at each of its launches."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self.kernel, self.target, self.done = kernel, GPUTarget("cuda", capability, 32), set()

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        """Return what a launch calls with the arguments of the kernel."""
        return self.launch

    def launch(self, *args: Any, num_warps: int, **switches: Any) -> None:
        """Compile the kernel for these arguments, as Triton would do at a launch."""
        signature, constants, attributes = {}, {}, {}
        for number, (parameter, value) in enumerate(zip(self.kernel.params, [*args, *switches.values()], strict=True)):
            if parameter.is_constexpr:
                signature[parameter.name], constants[parameter.name] = "constexpr", switches[parameter.name]
                continue
            tensor, whole = isinstance(value, torch.Tensor), isinstance(value, int)
            signature[parameter.name] = TYPES[value.dtype] if tensor else "i32" if whole else "fp32"
            if tensor or (whole and value % 16 == 0 and not parameter.do_not_specialize):
                attributes[(number,)] = [["tt.divisibility", 16]]
        key = repr((signature, constants, attributes, num_warps))
        if key in self.done:
            return
        self.done.add(key)
        source = ASTSource(self.kernel, signature, constants, attributes)
        binary = triton.compile(source, target=self.target, options={"num_warps": num_warps}).asm["cubin"]
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            Path(file.name).write_bytes(binary)
            usage = subprocess.run([DUMP, "-res-usage", file.name], capture_output=True, text=True, check=True)
        (line,) = (line.strip() for line in usage.stdout.splitlines() if "REG:" in line)
        print(self.kernel.__name__, constants, line, flush=True)


def launch_all(dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """Launch every kernel, with and without blur or ReLU."""
    n, channels = shape[:2]
    x = torch.empty(shape, dtype=dtype, device="meta").to(memory_format=torch.channels_last)
    noise, weight, style = (
        torch.empty(size, device="meta") for size in ((n, 1, *shape[2:]), channels, (n, 2 * channels))
    )
    for blurs in (False, True):
        _, saved = kernels.epilogue(x, noise, weight, weight, style, blurs=blurs)
        kernels.epilogue_backward(x, saved, noise, weight, weight, style, blurs=blurs)
        kernels.act_blur(x, weight, blurs=blurs)
        kernels.blur_mask(x, x, weight, blurs=blurs, sums=True)
    kernels.blur_mask(x, x, weight, blurs=True, sums=False)
    kernels.mask_blur(x, x, weight)
    kernels.blur(x)
    kernels.channel_sums(x)
    for count in (1, 4):  # colours of grey and of other images
        kernels.image_sums(x, x[:, :count], y=x, total=True)
        kernels.to_images(x, torch.empty((channels, count), device="meta"), y=x)
    images, of_images = x[:, :3], torch.empty((channels, 3), device="meta")
    kernels.from_images(images, of_images, weight, slope=0.2)
    kernels.from_images(images, of_images, None)
    kernels.to_images(x, of_images, torch.empty(3, device="meta"))
    kernels.to_images(x, of_images, y=x)
    kernels.image_sums(x, images, total=False)
    kernels.image_sums(x, images, y=x, total=True)
    for adjoint, rotated in ((False, False), (True, True)):
        side = 4 if adjoint else 3
        kernel = torch.empty((512, 512, side, side), dtype=dtype if adjoint else torch.float32, device="meta")
        kernels.four_tap(kernel, 1.0, rotated=rotated, adjoint=adjoint, dtype=torch.float32 if adjoint else dtype)
    number, numbers = (torch.empty((count, channels), device="meta") for count in (1, n))
    for relu in (False, True):
        kernels.moments(x, eps=1e-5)
        kernels.affine(x, number, numbers, numbers, relu=relu)
        kernels.affine_sums(x, x, number, numbers, numbers, relu=relu)
        kernels.affine_backward(x, x, number, numbers, numbers, number, number, relu=relu)


if __name__ == "__main__":
    for name in [name for name in vars(kernels) if name.endswith("_kernel")]:
        setattr(kernels, name, Compiled(getattr(kernels, name), int(sys.argv[1])))
    launch_all(torch.bfloat16, (32, 64, 256, 256))
