/* Linear layers: input times weight transposed, plus bias, for any number of rows of input.
 *
 * The weight stays as torch holds it, (num_columns, depth), and there is no second copy. A thread takes some columns
 * and turns them on the way, a panel at a time, so that they are adjacent in its cache; then each number of input
 * is multiplied by a whole panel's width, and a tile of sums stays in registers (Goto and van de Geijn 2008,
 * "Anatomy of high-performance matrix multiplication"). Turning costs a third of a cycle a number, which with few rows
 * is hidden while memory loads the next ones, and with many is little compared to the products. Weights of 8 bits, with
 * -DINT8, lie in panels already; all else is the same.
 *
 * A sum is added up in the order of the depth whatever the number of rows: what a row gets depends on that row and on
 * the weight only, to the last bit, not on other rows or on threads. Sums are float32. */

#include "multiply.h"

#ifdef __AVX512F__
#define MAX_ROWS 14 /* 28 sums, 2 vectors of weight and one of input: 31 of 32 registers */
#else
#define MAX_ROWS 6
#endif
#define WIDTH (2 * LANES) /* columns of a panel */
#define SHALLOW 64 /* units of a panel: 8 KiB, so that with few rows memory is never idle for long */
#define DEEP 256 /* with many rows: 32 KiB, so that sums are seldom moved */
#define FEW_ROWS 64
#define ROW_BLOCK 256

static inline vector load_some_units(const element *values, int64_t size) {
    element filled[LANES * PER_UNIT] = {0};
    for (int64_t i = 0; i < size; i++) filled[i] = values[i];
    return load_units(filled);
}

#ifdef INT8
/* A panel is read where it is stored: PANEL columns are adjacent, one number of the depth after another, so
 * that nothing has to be turned, and numbers are widened in registers. */
#define IS_SCALED 1
#define PANEL 16 /* as in quantized_linear.py */
#define PANEL_STEP (PER_UNIT * PANEL)
typedef int8_t panel_element;

static inline vector widen_bytes(const int8_t *values) {
#if defined(__AVX512F__)
    return (vector)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)values)));
#elif defined(__AVX2__) && defined(__FMA__)
    return (vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)values)));
#else
    vector x;
    for (int i = 0; i < LANES; i++) x[i] = values[i];
    return x;
#endif
}

/* A unit of LANES columns; what lies beyond the depth is 0. All of int8 is exact in bfloat16, a float's upper half. */
static inline vector panel_units(const int8_t *panel, int64_t left) {
#if PER_UNIT == 2
    const bits first = (bits)widen_bytes(panel) >> 16;
    return (vector)(left > 1 ? first | (bits)widen_bytes(panel + PANEL) : first);
#else
    (void)left;
    return widen_bytes(panel);
#endif
}

/* From depth `k` of a column on. That of the columns `ahead` is prefetched. */
static const int8_t *panel_of(const int8_t *weight, int64_t column, int64_t k, int64_t ahead, int64_t stride,
                              int64_t depth, int64_t num_columns, vector *room) {
    (void)num_columns, (void)room;
    const int8_t *panel = weight + column * stride + k * PANEL;
    for (int64_t i = 0; i < depth * PANEL; i += 64) __builtin_prefetch(panel + ahead * stride + i, 0, 2);
    return panel;
}

/* From a panel's first LANES columns to the others, which there need not be. */
static inline int64_t other_half(int64_t stride, int64_t num_columns) {
    return LANES < PANEL ? LANES : num_columns > LANES ? PANEL * stride : 0;
}
#else
#define IS_SCALED 0
#define PANEL_STEP 2
typedef vector panel_element;

static inline vector panel_units(const vector *panel, int64_t left) { return (void)left, *panel; }
static inline int64_t other_half(int64_t stride, int64_t num_columns) { return (void)stride, (void)num_columns, 1; }

/* Swap the blocks next to the diagonal: of size 1, then 2, 4, ... (Eklundh 1972). */
#define SWAP(x, size) \
    _Pragma("GCC unroll 16") for (int i = 0; i < LANES; i++) \
        if (!(i & size)) { \
            const vector lower = LOWER##size(x[i], x[i + size]), upper = UPPER##size(x[i], x[i + size]); \
            x[i] = lower, x[i + size] = upper; \
        }

/* x[i][j] becomes x[j][i]. */
static inline __attribute__((always_inline)) void transpose(vector x[LANES]) {
    SWAP(x, 1) SWAP(x, 2) SWAP(x, 4)
#if LANES == 16
    SWAP(x, 8)
#endif
}

/* Turn LANES columns of weight, of which there are `num_columns`, into one half of a panel (units, WIDTH). Those
 * `ahead` of them are prefetched. */
static void turn(const element *weight, int64_t ahead, int64_t stride, int64_t depth, int64_t num_columns,
                 vector *panel) {
    for (int64_t k = 0; k < depth; k += LANES * PER_UNIT) {
        vector x[LANES];
        const int64_t left = depth - k;
        if (num_columns == LANES && left >= LANES * PER_UNIT) {
#pragma GCC unroll 16
            for (int c = 0; c < LANES; c++) {
                x[c] = load_units(weight + c * stride + k);
                __builtin_prefetch(weight + c * stride + k + ahead, 0, 2);
            }
        } else {
            for (int c = 0; c < LANES; c++)
                x[c] = c < num_columns ? load_some_units(weight + c * stride + k, smaller(left, LANES * PER_UNIT))
                                       : (vector){0};
        }
        transpose(x);
        for (int u = 0; u < LANES; u++) panel[2 * (k / PER_UNIT + u)] = x[u];
    }
}

/* From depth `k` of WIDTH columns on, turned. */
static const vector *panel_of(const element *weight, int64_t column, int64_t k, int64_t ahead, int64_t stride,
                              int64_t depth, int64_t num_columns, vector *room) {
    const element *columns = weight + column * stride + k;
    turn(columns, ahead * stride, stride, depth, smaller(num_columns, LANES), room);
    turn(columns + LANES * stride, ahead * stride, stride, depth, smaller(num_columns - LANES, LANES), room + 1);
    return room;
}
#endif

static inline __attribute__((always_inline)) void multiply_tile(const element *input, int64_t stride, int64_t depth,
                                                                const panel_element *panel, int64_t other,
                                                                vector *sums, const int rows) {
    vector s[MAX_ROWS][2];
    for (int r = 0; r < rows; r++) s[r][0] = sums[2 * r], s[r][1] = sums[2 * r + 1];
    int64_t k = 0;
    for (; k + PER_UNIT <= depth; k += PER_UNIT, panel += PANEL_STEP) {
        const vector first = panel_units(panel, PER_UNIT), second = panel_units(panel + other, PER_UNIT);
        for (int r = 0; r < rows; r++) {
            const vector x = unit_of(input + r * stride + k) - (vector){0};
            s[r][0] = multiply_add(x, first, s[r][0]);
            s[r][1] = multiply_add(x, second, s[r][1]);
        }
    }
    if (k < depth) {
        const vector first = panel_units(panel, depth - k), second = panel_units(panel + other, depth - k);
        for (int r = 0; r < rows; r++) {
            const vector x = load_some_units(input + r * stride + k, depth - k)[0] - (vector){0};
            s[r][0] = multiply_add(x, first, s[r][0]);
            s[r][1] = multiply_add(x, second, s[r][1]);
        }
    }
    for (int r = 0; r < rows; r++) sums[2 * r] = s[r][0], sums[2 * r + 1] = s[r][1];
}

/* All rows of a block by a panel, in tiles as equal as they can be. */
static void multiply_panel(const element *input, int64_t stride, int64_t depth, const panel_element *panel,
                           int64_t other, vector *sums, int64_t num_rows) {
    const int64_t num_tiles = (num_rows + MAX_ROWS - 1) / MAX_ROWS;
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        const int64_t row = tile * num_rows / num_tiles, rows = (tile + 1) * num_rows / num_tiles - row;
#define CASE(rows) \
    case rows: \
        multiply_tile(input + row * stride, stride, depth, panel, other, sums + 2 * row, rows); \
        break;
        switch (rows) {
            CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6)
#if MAX_ROWS > 6
            CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) CASE(14)
#endif
        }
    }
}

/* Sums (num_rows, WIDTH) of rows from `row` on and columns from `column` on, which those from `next` on will follow. */
static void multiply_block(const struct multiply_job *job, const struct weights *weights, int64_t row,
                           int64_t num_rows, int64_t column, int64_t next, vector *sums) {
    vector room[2 * DEEP], bias[2] = {0}, scale[2] = {0};
    const int64_t num_columns = smaller(job->num_columns - column, WIDTH), other = other_half(job->depth, num_columns);
    if (weights->bias)
        for (int64_t c = 0; c < num_columns; c++) bias[c / LANES][c % LANES] = widen_one(weights->bias[column + c]);
    for (int64_t i = 0; i < 2 * num_rows; i++) sums[i] = IS_SCALED ? (vector){0} : bias[i % 2];
    const int64_t panel_depth = (num_rows > FEW_ROWS ? DEEP : SHALLOW) * PER_UNIT;
    for (int64_t k = 0; k < job->depth; k += panel_depth) {
        const int64_t depth = smaller(job->depth - k, panel_depth);
        const panel_element *panel =
            panel_of(weights->weight, column, k, next - column, job->depth, depth, num_columns, room);
        multiply_panel(job->input + row * job->input_stride + k, job->input_stride, depth, panel, other, sums, num_rows);
    }
    if (IS_SCALED) {
        __builtin_memcpy(scale, weights->scale + column, num_columns * sizeof(float));
        for (int64_t i = 0; i < 2 * num_rows; i++) sums[i] = fused(sums[i], scale[i % 2], bias[i % 2]);
    }
}

static inline float silu(float x) {
    const float e = exp_of(x < 0 ? x : -x);
    return x * (x < 0 ? e : 1.0f) / (1.0f + e);
}

static void gate(float *sums, const float *gates, int64_t size) {
#pragma omp simd
    for (int64_t i = 0; i < size; i++) sums[i] *= silu(gates[i]);
}

static void store(const struct multiply_job *job, int64_t place, const float *sums, int64_t num_columns) {
    if (!job->output) {
        __builtin_memcpy(job->wide_output + place, sums, num_columns * sizeof(float));
    } else if (job->addend) {
        for (int64_t c = 0; c < num_columns; c++)
            job->output[place + c] = narrow(widen_one(job->addend[place + c]) + sums[c]);
    } else {
        for (int64_t c = 0; c < num_columns; c++) job->output[place + c] = narrow(sums[c]);
    }
}

static void multiply_columns(const struct multiply_job *job, int64_t row, int64_t num_rows, int64_t column,
                             int64_t next) {
    union { vector vectors[2 * ROW_BLOCK]; float rows[ROW_BLOCK][WIDTH]; } sums, gates;
    multiply_block(job, &job->linear, row, num_rows, column, next, sums.vectors);
    if (job->gate.weight) {
        multiply_block(job, &job->gate, row, num_rows, column, next, gates.vectors);
        gate(sums.rows[0], gates.rows[0], num_rows * WIDTH);
    }
    for (int64_t r = 0; r < num_rows; r++)
        store(job, (row + r) * job->output_stride + column, sums.rows[r], smaller(job->num_columns - column, WIDTH));
}

static int64_t take(struct multiply_job *job) {
    return WIDTH * __atomic_fetch_add(&job->next_item, 1, __ATOMIC_RELAXED);
}

/* Run by all threads of a team at once: each takes the next columns until none are left. */
void multiply(struct multiply_job *job) {
    int64_t column = take(job);
    while (column < job->num_columns) {
        const int64_t next = take(job);
        for (int64_t row = 0; row < job->num_rows; row += ROW_BLOCK)
            multiply_columns(job, row, smaller(job->num_rows - row, ROW_BLOCK), column, next);
        column = next;
    }
}
