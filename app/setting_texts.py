"""What each setting is for, in one line. Settings checks them; `--help` shows this, which loads no pydantic."""

from __future__ import annotations

SETTING_TO_TEXT = {
    "model": "The backbone: a directory in Hugging Face layout, or a hub id. The demo backbone without it.",
    "revision": "Branch, tag or commit of the hub repository.",
    "registry": "Folder of the tasks. Without it the demo tasks, and yours in ~/.local/share/softswap/prompts.",
    "state": "Folder of uploads, tuning jobs and half-done work; `.state` in the registry without it.",
    "watch_interval": "Seconds between looks for task folders that appeared or changed; 0 is never.",
    "host": "Address to listen on; 127.0.0.1 without it.",
    "port": "Port to listen on, 8000 without it; 0 takes a free one.",
    "device": "auto, cpu, cuda or cuda:N.",
    "dtype": "float32, bfloat16, float16, or auto: the checkpoint's own on CUDA, float32 on CPU.",
    "quantize": "none, or int8: linear layers' weights in a byte each, on a CPU only.",
    "attention": "auto is the fastest that can run, on CPU compiled at first use; sdpa is torch's own.",
    "layers": "auto is C code on a CPU where it is measured to be faster; torch is torch's own.",
    "eager": "On CUDA, without decode graphs and asynchronous scheduling; both are never used on CPU.",
    "max_model_len": "Positions of a sequence, virtual tokens included; the model's own without it.",
    "max_num_seqs": "Sequences computed at a time.",
    "max_num_batched_tokens": "Tokens computed in a step.",
    "block_size": "Tokens in a block of the cache; a multiple of 256 on CUDA.",
    "kv_cache_memory": "Bytes for keys and values, such as 2147483648, 512MiB or 4GB.",
    "prefix_caching": "Keep computed text for requests of the same key that begin alike, while there is room.",
    "prefix_store": "Folder that keeps task prompts' keys and values when memory has no room; none without it.",
    "prefix_store_size": "Bytes of all its files, such as 10GiB; the least recently used go.",
    "max_waiting_requests": "Requests that may wait; more are refused with 503.",
    "max_waiting_tokens": "Tokens of text that may wait; more are refused with 503.",
    "tuning_share": "Share of the device's time that tuning gets while requests run; under load, none.",
    "request_timeout": "Seconds a request may take that sends no X-Request-Timeout.",
    "api_keys": "Keys, separated by commas, of 16 characters or more; every route asks for one. Better in the "
    "environment than in a command.",
    "api_keys_file": "File with more keys, one a line; lines with # are comments.",
    "insecure": "Listen on other than this machine's own addresses without any key.",
    "shutdown_timeout": "Seconds running requests get to end when the server is asked to stop.",
    "log_level": "Least weight of a log line: debug, info, warning or error.",
    "url": "A running server, such as http://127.0.0.1:8000, that commands ask instead of working here.",
    "api_key": "The key for that server. Better in the environment than in a command.",
}
