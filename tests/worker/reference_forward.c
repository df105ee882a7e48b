#include "tests/worker/reference_forward.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "tests/support/test.h"

static double *new_doubles(int64_t n)
{
    double *values = calloc((size_t)(n > 0 ? n : 1), sizeof *values);
    assert_non_null(values);
    return values;
}

/* out[t, o] = sum_i x[t, i] w[o, i] */
static void linear(const double *x, const float *w, int64_t n_tokens, int64_t n_in, int64_t n_out,
                   double *out)
{
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t o = 0; o < n_out; o++) {
            double sum = 0.0;
            for (int64_t i = 0; i < n_in; i++) {
                sum += x[t * n_in + i] * (double)w[o * n_in + i];
            }
            out[t * n_out + o] = sum;
        }
    }
}

/* With a bias LayerNorm, without one RMSNorm. */
struct norm_arrays {
    const float *weight, *bias;
};

static void norm(const double *x, struct norm_arrays norm, int64_t n_tokens, int64_t n, double *out)
{
    for (int64_t t = 0; t < n_tokens; t++) {
        double squares = 0.0;
        double mean = 0.0;
        for (int64_t i = 0; norm.bias != NULL && i < n; i++) {
            mean += x[t * n + i] / (double)n;
        }
        for (int64_t i = 0; i < n; i++) {
            squares += (x[t * n + i] - mean) * (x[t * n + i] - mean);
        }
        const double scale = 1.0 / sqrt(squares / (double)n + 1e-5);
        for (int64_t i = 0; i < n; i++) {
            out[t * n + i] = (x[t * n + i] - mean) * scale * (double)norm.weight[i] +
                             (norm.bias != NULL ? (double)norm.bias[i] : 0.0);
        }
    }
}

static void rotate(const struct test_model_shape *s, double *x, int64_t n_tokens, int64_t n_heads)
{
    const int64_t head_dim = s->head_dim;
    const int64_t half = (s->rotary_dim > 0 ? s->rotary_dim : s->head_dim) / 2;
    const double theta = s->rope_theta > 0.0 ? s->rope_theta : 10000.0;
    for (int64_t t = 0; t < n_tokens; t++) {
        for (int64_t h = 0; h < n_heads; h++) {
            double *head = x + (t * n_heads + h) * head_dim;
            for (int64_t i = 0; i < half; i++) {
                const double angle = (double)t * pow(theta, -2.0 * (double)i / (double)(2 * half));
                const double a = head[i];
                const double b = head[i + half];
                head[i] = a * cos(angle) - b * sin(angle);
                head[i + half] = b * cos(angle) + a * sin(angle);
            }
        }
    }
}

struct reference {
    const struct test_model *model;
    int64_t n_tokens;
    int kv_dtype;
    double *x, *normed, *q, *k, *v, *attended, *gate, *up, *sum, *scores;
};

/* One query of one head: softmax over what it sees. */
static void attend(const struct reference *r, int32_t layer, int64_t t, int64_t head)
{
    const struct test_model_shape *s = &r->model->shape;
    const int64_t n_kv = s->kv_heads[layer];
    const int64_t kv = head / (s->n_heads / n_kv);
    const int64_t hd = s->head_dim;
    const double *q = r->q + (t * s->n_heads + head) * hd;
    double *out = r->attended + (t * s->n_heads + head) * hd;
    const int64_t first =
        s->sliding_window > 0 && t >= s->sliding_window ? t - s->sliding_window + 1 : 0;
    double largest = -INFINITY;
    for (int64_t u = first; u <= t; u++) {
        double dot = 0.0;
        for (int64_t i = 0; i < hd; i++) {
            dot += q[i] * r->k[(u * n_kv + kv) * hd + i];
        }
        r->scores[u] = dot / sqrt((double)hd);
        largest = fmax(largest, r->scores[u]);
    }
    double total = 0.0;
    for (int64_t u = first; u <= t; u++) {
        r->scores[u] = exp(r->scores[u] - largest);
        total += r->scores[u];
    }
    for (int64_t i = 0; i < hd; i++) {
        double sum = 0.0;
        for (int64_t u = first; u <= t; u++) {
            sum += r->scores[u] * r->v[(u * n_kv + kv) * hd + i];
        }
        out[i] = sum / total;
    }
}

/* Rows of keys or values to what int8 and a bfloat16 scale keep of them. */
static void quantize(double *x, int64_t n_rows, int64_t n)
{
    for (int64_t r = 0; r < n_rows; r++) {
        double *const row = x + r * n;
        double most = 0.0;
        for (int64_t i = 0; i < n; i++) {
            most = fmax(most, fabs(row[i]));
        }
        int exponent = 0;
        (void)frexp(most / 127.0, &exponent);
        const double last_place = ldexp(1.0, exponent - 8);
        const double scale = nearbyint(most / 127.0 / last_place) * last_place;
        for (int64_t i = 0; i < n && scale > 0.0; i++) {
            row[i] = fmax(-127.0, fmin(127.0, nearbyint(row[i] / scale))) * scale;
        }
    }
}

static void add(double *x, const double *y, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        x[i] += y[i];
    }
}

static void attention_block(const struct reference *r, int32_t i)
{
    const struct test_model_shape *s = &r->model->shape;
    const struct test_layer *layer = &r->model->layers[i];
    const int64_t n = r->n_tokens;
    const int64_t n_q = (int64_t)s->n_heads * s->head_dim;
    const int64_t n_kv = (int64_t)s->kv_heads[i] * s->head_dim;
    if (layer->attention_norm == NULL) {
        return;
    }
    norm(r->x, (struct norm_arrays){layer->attention_norm, layer->attention_norm_bias}, n,
         s->n_hidden, r->normed);
    if (layer->linear_attention != NULL) {
        linear(r->normed, layer->linear_attention, n, s->n_hidden, s->n_hidden, r->sum);
        add(r->x, r->sum, n * s->n_hidden);
        return;
    }
    linear(r->normed, layer->q, n, s->n_hidden, n_q, r->q);
    linear(r->normed, layer->k, n, s->n_hidden, n_kv, r->k);
    linear(r->normed, layer->v, n, s->n_hidden, n_kv, r->v);
    rotate(s, r->q, n, s->n_heads);
    rotate(s, r->k, n, s->kv_heads[i]);
    if (r->kv_dtype == DTYPE_I8) {
        quantize(r->k, n * s->kv_heads[i], s->head_dim);
        quantize(r->v, n * s->kv_heads[i], s->head_dim);
    }
    for (int64_t t = 0; t < n; t++) {
        for (int64_t head = 0; head < s->n_heads; head++) {
            attend(r, i, t, head);
        }
    }
    linear(r->attended, layer->o, n, n_q, s->n_hidden, r->sum);
    add(r->x, r->sum, n * s->n_hidden);
}

static void ffn_block(const struct reference *r, int32_t i)
{
    const struct test_model_shape *s = &r->model->shape;
    const struct test_layer *layer = &r->model->layers[i];
    const int64_t n = r->n_tokens;
    const int64_t n_ff = s->n_ff[i];
    if (layer->ffn_norm == NULL) {
        return;
    }
    norm(r->x, (struct norm_arrays){layer->ffn_norm, layer->ffn_norm_bias}, n, s->n_hidden,
         r->normed);
    if (layer->linear_ffn != NULL) {
        linear(r->normed, layer->linear_ffn, n, s->n_hidden, s->n_hidden, r->sum);
        add(r->x, r->sum, n * s->n_hidden);
        return;
    }
    linear(r->normed, layer->gate, n, s->n_hidden, n_ff, r->gate);
    linear(r->normed, layer->up, n, s->n_hidden, n_ff, r->up);
    for (int64_t j = 0; j < n * n_ff; j++) {
        r->gate[j] = r->gate[j] / (1.0 + exp(-r->gate[j])) * r->up[j];
    }
    linear(r->gate, layer->down, n, n_ff, s->n_hidden, r->sum);
    add(r->x, r->sum, n * s->n_hidden);
}

void reference_forward(const struct test_model *model, const struct reference_input *input,
                       double *logits)
{
    const struct test_model_shape *s = &model->shape;
    const int64_t n = input->n_tokens;
    const int64_t n_q = (int64_t)s->n_heads * s->head_dim;
    int64_t n_ff = 0;
    for (int32_t i = 0; i < s->n_layers; i++) {
        n_ff = s->n_ff[i] > n_ff ? s->n_ff[i] : n_ff;
    }
    struct reference r = {
        .model = model,
        .n_tokens = n,
        .kv_dtype = input->kv_dtype,
        .x = new_doubles(n * s->n_hidden),
        .normed = new_doubles(n * s->n_hidden),
        .q = new_doubles(n * n_q),
        .k = new_doubles(n * n_q),
        .v = new_doubles(n * n_q),
        .attended = new_doubles(n * n_q),
        .gate = new_doubles(n * n_ff),
        .up = new_doubles(n * n_ff),
        .sum = new_doubles(n * s->n_hidden),
        .scores = new_doubles(n),
    };
    for (int64_t t = 0; t < n; t++) {
        for (int64_t i = 0; i < s->n_hidden; i++) {
            r.x[t * s->n_hidden + i] =
                (double)model->embedding[(int64_t)input->tokens[t] * s->n_hidden + i];
        }
    }
    for (int32_t i = 0; i < s->n_layers; i++) {
        attention_block(&r, i);
        ffn_block(&r, i);
    }
    norm(r.x, (struct norm_arrays){model->final_norm, model->final_norm_bias}, n, s->n_hidden,
         r.normed);
    linear(r.normed, model->head, n, s->n_hidden, s->n_vocab, logits);
    double *const arrays[] = {r.x,        r.normed, r.q,  r.k,   r.v,
                              r.attended, r.gate,   r.up, r.sum, r.scores};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++) {
        free(arrays[i]);
    }
}
