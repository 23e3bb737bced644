/* A decoder layer as Llama has it (Touvron et al. 2023), over packed tokens: normalize, project, rotate, attend,
 * project and add; normalize, gated feed-forward and add. Ten calls of torch's operators would each wake a team of
 * threads and pass their results through memory.
 *
 * Everything is computed token by token in its own order, so what a token gets does not depend on the others. */

#include "layer.h"

#define SMALL (1 << 13) /* numbers that one thread has worked on before a second one is awake */
#define CHUNK 8 /* tokens that a thread takes at a time */

static void run(const struct step *step, void (*work)(void *), void *job, int64_t size) {
    if (size < SMALL) work(job);
    else step->run_in_team(work, job, step->num_threads, 0);
}

/* 1 / sqrt(mean(x^2) + epsilon): what RMSNorm multiplies with (Zhang and Sennrich 2019). */
static inline float inverse_rms(const float *values, int64_t size, float epsilon) {
    vector sums = {0};
    float sum = 0;
    int64_t i = 0;
    for (vector x; i + LANES <= size; i += LANES) {
        __builtin_memcpy(&x, values + i, sizeof x);
        sums = fused(x, x, sums);
    }
    for (int lane = 0; lane < LANES; lane++) sum += sums[lane];
    for (; i < size; i++) sum += values[i] * values[i];
    return 1.0f / sqrtf(sum / size + epsilon);
}

struct norm_job {
    const element *input, *weight;
    element *output;
    int64_t num_rows, width;
    float epsilon;
    int64_t next_item;
};

static void normalize_row(const struct norm_job *job, int64_t row) {
    const element *input = job->input + row * job->width;
    element *output = job->output + row * (job->width + PADDING);
    float wide[job->width];
    for (int64_t i = 0; i < job->width; i++) wide[i] = widen_one(input[i]);
    const float scale = inverse_rms(wide, job->width, job->epsilon);
    for (int64_t i = 0; i < job->width; i++) output[i] = narrow(widen_one(job->weight[i]) * (wide[i] * scale));
}

static void normalize(void *argument) {
    struct norm_job *job = argument;
    int64_t row;
    while ((row = CHUNK * __atomic_fetch_add(&job->next_item, 1, __ATOMIC_RELAXED)) < job->num_rows)
        for (int64_t end = smaller(row + CHUNK, job->num_rows); row < end; row++) normalize_row(job, row);
}

struct place_job {
    const struct layer *layer;
    const struct step *step;
    element *keys, *values;
    int64_t next_item;
};

/* Rotary positions (Su et al. 2021), halves of a head as pairs; normalized before if the layer does so. */
static void rotate(float *head, const element *cosines, const element *sines, const element *norm, float epsilon) {
    if (norm) {
        const float scale = inverse_rms(head, HEAD_DIM, epsilon);
        for (int d = 0; d < HEAD_DIM; d++) head[d] = widen_one(norm[d]) * (head[d] * scale);
    }
    for (int d = 0, e = HEAD_DIM / 2; d < HEAD_DIM / 2; d++, e++) {
        const float a = head[d], b = head[e];
        head[d] = a * widen_one(cosines[d]) - b * widen_one(sines[d]);
        head[e] = b * widen_one(cosines[e]) + a * widen_one(sines[e]);
    }
}

/* Rotate a token's queries and keys, and put its keys and values into the cache. */
static void place_token(const struct place_job *job, int64_t token) {
    const struct layer *layer = job->layer;
    const struct step *step = job->step;
    const element *cosines = step->cosines + token * HEAD_DIM, *sines = step->sines + token * HEAD_DIM;
    const int64_t size = layer->num_kv_heads * HEAD_DIM, slot = step->slots[token] * size;
    float *query = step->query + token * layer->num_heads * HEAD_DIM, *key = step->key + token * size;
    for (int64_t h = 0; h < layer->num_heads; h++)
        rotate(query + h * HEAD_DIM, cosines, sines, layer->query_norm, layer->query_epsilon);
    for (int64_t h = 0; h < layer->num_kv_heads; h++)
        rotate(key + h * HEAD_DIM, cosines, sines, layer->key_norm, layer->key_epsilon);
    for (int64_t i = 0; i < size; i++) {
        job->keys[slot + i] = narrow(key[i]);
        job->values[slot + i] = narrow(step->value[token * size + i]);
    }
}

static void place(void *argument) {
    struct place_job *job = argument;
    int64_t token;
    while ((token = CHUNK * __atomic_fetch_add(&job->next_item, 1, __ATOMIC_RELAXED)) < job->step->num_tokens)
        for (int64_t end = smaller(token + CHUNK, job->step->num_tokens); token < end; token++)
            place_token(job, token);
}

static void copy(const struct step *step, int64_t size, element *cached) {
    for (int64_t i = 0; i < step->num_copies; i++)
        __builtin_memcpy(cached + step->targets[i] * size, cached + step->sources[i] * size, size * sizeof(element));
}

struct products {
    struct multiply_job jobs[3];
    int num_jobs;
};

static void multiply_all(void *argument) {
    struct products *products = argument;
    for (int i = 0; i < products->num_jobs; i++) multiply(&products->jobs[i]);
}

/* A number takes part in about sixteen products. */
static void multiply_in_team(const struct step *step, struct products *products) {
    int64_t size = 0;
    for (int i = 0; i < products->num_jobs; i++)
        size += products->jobs[i].num_rows * products->jobs[i].num_columns * products->jobs[i].depth / 16;
    run(step, multiply_all, products, size);
}

static struct multiply_job product(const struct step *step, struct multiply_job weights, const element *input) {
    weights.input = input;
    weights.input_stride += PADDING;
    weights.num_rows = step->num_tokens;
    return weights;
}

static void attend_any(void *job) { attend(job); }

/* Pairs of tokens of which one sees the other. */
static int64_t num_seen(const struct step *step) {
    int64_t pairs = 0;
    for (int64_t i = 0; i < step->num_runs; i++) pairs += (int64_t)step->runs[i].num_seen * step->runs[i].length;
    return pairs;
}

static void normalize_all(const struct layer *layer, const struct step *step, const element *input,
                          const element *weight, float epsilon) {
    struct norm_job job = {input, weight, step->normal, step->num_tokens, layer->hidden_size, epsilon, 0};
    run(step, normalize, &job, job.num_rows * job.width);
}

/* output = input + attention(normalized input) */
static void attend_layer(const struct layer *layer, const struct step *step, const element *input, element *output,
                         element *keys, element *values) {
    normalize_all(layer, step, input, layer->input_norm, layer->input_epsilon);
    struct products projected = {{product(step, layer->query, step->normal), product(step, layer->key, step->normal),
                                  product(step, layer->value, step->normal)}, 3};
    projected.jobs[0].wide_output = step->query;
    projected.jobs[1].wide_output = step->key;
    projected.jobs[2].wide_output = step->value;
    multiply_in_team(step, &projected);

    const int64_t size = layer->num_kv_heads * HEAD_DIM;
    struct place_job placed = {layer, step, keys, values, 0};
    run(step, place, &placed, step->num_tokens * (layer->num_heads * HEAD_DIM + 2 * size));
    copy(step, size, keys);
    copy(step, size, values);

    struct attend_job attention = {
        step->query, keys, values, step->block_tables, step->runs, step->attended, step->num_runs, layer->num_heads,
        layer->num_kv_heads, step->block_size, step->table_width, layer->window, layer->num_heads * HEAD_DIM + PADDING,
        layer->scale, 0};
    run(step, attend_any, &attention, num_seen(step) * layer->num_heads * HEAD_DIM / 8);

    struct products added = {{product(step, layer->output, step->attended)}, 1};
    added.jobs[0].addend = input;
    added.jobs[0].output = output;
    multiply_in_team(step, &added);
}

/* output += feed_forward(normalized output) */
static void feed_forward(const struct layer *layer, const struct step *step, element *output) {
    normalize_all(layer, step, output, layer->output_norm, layer->output_epsilon);
    struct products gated = {{product(step, layer->up, step->normal)}, 1};
    gated.jobs[0].output = step->gated;
    gated.jobs[0].output_stride += PADDING;
    multiply_in_team(step, &gated);

    struct products added = {{product(step, layer->down, step->gated)}, 1};
    added.jobs[0].addend = added.jobs[0].output = output;
    multiply_in_team(step, &added);
}

void compute_layer(const struct layer *layer, const struct step *step, const element *input, element *output,
                   element *keys, element *values) {
    attend_layer(layer, step, input, output, keys, values);
    feed_forward(layer, step, output);
}
