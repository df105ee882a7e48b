#include "parallel/weight_formats.h"

int weight_formats_of(const struct weight_formats *formats, int32_t layer, enum weight_kind kind)
{
    static const int quantized[] = {
        [QUANTIZATION_INT8] = MATRIX_I8,
        [QUANTIZATION_W8A8] = MATRIX_W8A8,
    };
    if (kind == WEIGHT_KIND_HEAD || layer < 0 || formats->quantization == QUANTIZATION_NONE) {
        return formats->dtype;
    }
    return quantized[formats->quantization];
}

int64_t weight_formats_bytes(int format, int64_t n_out, int64_t n_in)
{
    const int dtype = dtype_of_format(format);
    const int64_t scales = dtype == DTYPE_I8 && n_in > 0 ? n_out * (int64_t)sizeof(float) : 0;
    return n_out * n_in * (int64_t)dtype_bytes(dtype) + scales;
}
