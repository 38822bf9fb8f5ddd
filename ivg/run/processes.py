"""Joining and leaving the processes that a launcher started."""

from __future__ import annotations

import atexit
import os
import sys

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from ivg.errors import ProcessLostError, UserError, first_line


def join_processes() -> PartialState:
    """Join the other processes of `accelerate launch` or `torchrun`, on the CPU where there is no GPU.

    The trainers' arguments do this by themselves. A script without them must, before anything else asks for
    the state: a bare `PartialState()` overlooks the launcher's `use_cpu`, and every process would take
    itself for the only one.

    Raises:
        UserError: the processes cannot find each other.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available())
    if state.num_processes != int(os.environ.get("WORLD_SIZE", "1")):
        raise UserError(
            f"the launcher started {os.environ['WORLD_SIZE']} processes, but they cannot find each other; "
            "set use_cpu or give every process a GPU in the launcher's configuration"
        )
    return state


def wait_for_others() -> None:
    """Wait until every process has come here.

    Raises:
        ProcessLostError: one of them has ended.
    """
    try:
        PartialState().wait_for_everyone()
    except RuntimeError as error:  # torch's collectives say so in many words, gloo and NCCL in others
        raise ProcessLostError(f"another process of this run has ended ({first_line(error)})") from error


def leave_processes() -> None:
    """Wait for the others and leave the process group, without which ZeRO-3 aborts at exit."""
    wait_for_others()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def end_processes() -> None:
    """Leave the process group at a script's very end; one process of several then ends at once.

    Threads of the collectives on a CPU can otherwise abort an interpreter that shuts down with all work done.
    """
    leave_processes()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
