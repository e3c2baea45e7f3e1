"""CUDA kernels on raw device pointers. There only when the package was built with nvcc; importing it needs no
driver. Nothing here allocates or waits: work is queued on ``stream`` (a cudaStream_t as an integer, 0: the
default stream) and the caller keeps the memory alive until it is done. Errors: ValueError (``element_bytes``),
RuntimeError with CUDA's own words (no driver, a wrong pointer, an earlier failure)."""

def device_count() -> int:
    """CUDA devices this process can use; 0 without a driver."""

def split_planes(data: int, out: int, num_elements: int, element_bytes: int, stream: int = 0) -> None:
    """data [num_elements, element_bytes] bytes -> out [element_bytes, num_elements] bytes."""

def join_planes(planes: int, out: int, num_elements: int, element_bytes: int, stream: int = 0) -> None:
    """planes [element_bytes, num_elements] bytes -> out [num_elements, element_bytes] bytes."""

# -- csrc/cuda/codec.h; see bloombee.codec.cuda

def codec_workspace_bytes(rows: int, channels: int, dtype: int, row_bits: int, unit_log2: int = 14) -> int: ...
def codec_encode(
    values: int,
    stride: int,
    rows: int,
    channels: int,
    dtype: int,
    row_bits: int,
    unit_log2: int,
    table: int,
    key: bytes,
    message: int,
    workspace: int,
    stream: int = 0,
) -> None: ...
def codec_decode(
    head: bytes,
    message: int,
    size: int,
    values: int,
    stride: int,
    rows: int,
    channels: int,
    dtype: int,
    row_bits: int,
    table: int,
    workspace: int,
    stream: int = 0,
) -> None: ...

# -- csrc/cuda/fused.h; see bloombee.engine.fused

def fused_norm(
    shape: tuple[int, int, int, int, int, int], epsilon: float, dtype: int, x: int, weight: int, out: int, stream: int = 0
) -> None: ...
def fused_gate(shape: tuple[int, int, int, int], dtype: int, gate: int, up: int, out: int, stream: int = 0) -> None: ...
def fused_rotary(
    queries: tuple[int, int, int, int, int, int, int],
    keys: tuple[int, int, int, int, int, int, int],
    dtype: int,
    q: int,
    k: int,
    cosines: int,
    sines: int,
    q_out: int,
    k_out: int,
    stream: int = 0,
) -> None: ...

# -- csrc/cuda/attention.h; see bloombee.engine.paged

def paged_attend(**task: int | float) -> None: ...
def paged_write(**task: int) -> None: ...
