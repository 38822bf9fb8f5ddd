"""Direct preference optimisation: makes the tuned half of a guidance pair from the untuned one.

    accelerate launch train/dpo.py --config recipes/<task>/dpo.yaml

Rows: {"prompt", "chosen", "rejected"}, plain or conversational. A thin script over TRL's DPOTrainer, whose
keys all apply, beside those of ivg/training/arguments.py. With `use_peft` (LoRA) the adapter switched off is
the reference, and with `precompute_ref_log_probs` its log-probabilities are computed once: no second copy of
the model is held in either case.
"""

import sys

from trl import DPOConfig, DPOTrainer, get_peft_config, get_quantization_config

from ivg.errors import exit_on_user_error
from ivg.processes import end_processes
from ivg.training import arguments, checks, running
from ivg.training.cards import CardMixin


class Trainer(CardMixin, DPOTrainer):
    """TRL's trainer with our model card."""


@exit_on_user_error
def main() -> None:
    """Check, train, save."""
    data_args, training, model_args = arguments.parse_arguments(
        (arguments.DataArguments, DPOConfig, arguments.ModelArguments), sys.argv[1:]
    )
    job = running.prepare(data_args, training, model_args, (checks.PREFERENCE,))
    trainer = Trainer(
        model=job.model,
        args=training,
        train_dataset=job.train_rows,
        eval_dataset=job.eval_rows,
        processing_class=job.tokenizer,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    running.train(trainer, "dpo", data_args, model_args, beta=training.beta)
    end_processes()


if __name__ == "__main__":
    main()
