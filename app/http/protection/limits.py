"""Every bound a caller can meet, in one place: the schemas use these names and `GET /v1/server` shows them."""

from __future__ import annotations

from typing import Final

from app.http.protection.upload_limits import MAX_UPLOADS
from app.jobs.files import MAX_ALL_FILES_BYTES, MAX_FILE_BYTES, MAX_FILES
from app.jobs.job_store import MAX_JOBS, MAX_UNFINISHED_JOBS
from app.jobs.notifier import MAX_LISTENERS
from app.measure.dataset import MAX_LINE_BYTES, MAX_ROWS
from app.registry.formats import importers
from app.sampling import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP, MAX_STOP_CHARS, MAX_STOP_TOKEN_IDS
from app.task_prompt import MAX_VIRTUAL_TOKENS
from app.tuning.search import MAX_MEMBERS

MAX_BODY_BYTES: Final = 2**20
MAX_UPLOAD_BYTES: Final = importers.MAX_UPLOAD_BYTES
MAX_UPLOAD_BODY_BYTES: Final = MAX_UPLOAD_BYTES + 2**16
MAX_HEADER_BYTES: Final = 2**16

MAX_MODEL_CHARS: Final = 256
MAX_PROMPTS: Final = 64
MAX_TEXT_CHARS: Final = 500_000
MAX_TOKEN_IDS: Final = 131_072
MAX_TOKENS: Final = 131_072
MAX_N: Final = 8
MAX_MESSAGES: Final = 256
MAX_CONTENT_PARTS: Final = 64
MAX_METADATA: Final = 16
MAX_METADATA_KEY_CHARS: Final = 64
MAX_METADATA_VALUE_CHARS: Final = 512

MAX_INPUTS: Final = 1000
MAX_ENSEMBLE: Final = 8
MAX_EXAMPLES: Final = 5000
MAX_EXAMPLES_BODY_BYTES: Final = 4 * 2**20
MAX_QUESTIONS: Final = 64
MAX_CHOICES: Final = 64
MAX_LEVELS: Final = 10
MAX_INSTRUCTIONS_CHARS: Final = 8192
MAX_LABEL_CHARS: Final = 256

MAX_TASK_CHARS: Final = 63
MAX_LABELS: Final = 1024
MAX_TEMPLATE_CHARS: Final = 16_384
MAX_DESCRIPTION_CHARS: Final = 4096
MAX_FIGURES: Final = 64
MAX_ALIAS_TARGETS: Final = 2
MAX_PAGE: Final = 1000
MAX_NEAREST: Final = 20
MAX_ABLATIONS: Final = 20_000

MAX_FILE_BODY_BYTES: Final = MAX_FILE_BYTES + 2**16
MAX_ID_CHARS: Final = 64
MAX_SUFFIX_CHARS: Final = 63
MAX_INIT_TEXT_CHARS: Final = 8192
MAX_EPOCHS: Final = 1000
MAX_UPDATES: Final = 1_000_000
MAX_BATCH_SIZE: Final = 4096

MAX_TIMEOUT_S: Final = 3600.0

LIMITS: Final[dict[str, int | float]] = {
    "body_bytes": MAX_BODY_BYTES,
    "upload_bytes": MAX_UPLOAD_BYTES,
    "header_bytes": MAX_HEADER_BYTES,
    "prompts": MAX_PROMPTS,
    "text_chars": MAX_TEXT_CHARS,
    "token_ids": MAX_TOKEN_IDS,
    "n": MAX_N,
    "stop": MAX_STOP,
    "stop_chars": MAX_STOP_CHARS,
    "stop_token_ids": MAX_STOP_TOKEN_IDS,
    "logprobs": MAX_LOGPROBS,
    "logit_bias": MAX_LOGIT_BIAS,
    "messages": MAX_MESSAGES,
    "inputs": MAX_INPUTS,
    "ensemble_members": MAX_ENSEMBLE,
    "examples": MAX_EXAMPLES,
    "examples_body_bytes": MAX_EXAMPLES_BODY_BYTES,
    "ablations": MAX_ABLATIONS,
    "questions": MAX_QUESTIONS,
    "choices": MAX_CHOICES,
    "levels": MAX_LEVELS,
    "labels": MAX_LABELS,
    "virtual_tokens": MAX_VIRTUAL_TOKENS,
    "file_bytes": MAX_FILE_BYTES,
    "file_uploads": MAX_UPLOADS,
    "file_line_chars": MAX_LINE_BYTES,
    "file_lines": MAX_ROWS,
    "files": MAX_FILES,
    "all_files_bytes": MAX_ALL_FILES_BYTES,
    "jobs": MAX_JOBS,
    "unfinished_jobs": MAX_UNFINISHED_JOBS,
    "job_followers": MAX_LISTENERS,
    "job_members": MAX_MEMBERS,
    "job_epochs": MAX_EPOCHS,
    "job_updates": MAX_UPDATES,
    "job_batch_size": MAX_BATCH_SIZE,
    "timeout_s": MAX_TIMEOUT_S,
}
