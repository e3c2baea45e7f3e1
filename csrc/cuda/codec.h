// The activation codec on the GPU: the same messages as codec/rans.h, by the per-unit code of codec/rans_unit.h.
// Everything is queued on `stream`; nothing is allocated and nothing waits. All pointers but `head` are the device's.
// Messages of few units have a block of eight warps for each, and are one launch; of more, a warp. The checksum is left
// to the host (rans::seal, rans::check), which has the bytes anyway when they cross a network.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace bloombee {

struct CodecShape {
    uint64_t rows, channels;
    int dtype;     // rans::DtypeCode
    int row_bits;  // of the table
    int unit_log2;
    uint64_t stride;  // bytes between rows of values; values are aligned to their size
};

// Start of the workspace after a run.
struct CodecResult {
    uint64_t size;   // of the message that was encoded
    uint32_t error;  // 1: the message that was to be decoded is corrupt, and the values are undefined
    uint32_t raw;    // 1: the message is raw, because coding would not have made it smaller
};

// Bytes of workspace for a shape, aligned to 256. All of it must be 0 before its first use; a run leaves it fit for the
// next one, of any shape that it is large enough for.
cudaError_t codec_workspace_bytes(const CodecShape& shape, size_t* bytes);

// Encodes values into message [rans::bound], which is aligned to 4. `table` is a rans::TableImage aligned to 64.
// `key`: first 4 bytes of the table's digest. cudaErrorInvalidValue: too few values for a coded message.
cudaError_t codec_encode_cuda(const CodecShape& shape, const void* values, const void* table, const uint8_t key[4],
                              uint8_t* message, void* workspace, cudaStream_t stream);

// Decodes a coded message of `size` bytes, aligned to 4, whose first 12 are `head` (on the host; the caller has checked
// them and the checksum). cudaErrorInvalidValue: a head that does not fit the shape.
cudaError_t codec_decode_cuda(const CodecShape& shape, const uint8_t* head, const uint8_t* message, size_t size,
                              const void* table, void* values, void* workspace, cudaStream_t stream);

}  // namespace bloombee
