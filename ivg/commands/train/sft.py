"""Supervised fine-tuning of a causal language model, existing or new.

    ivg train sft --config recipes/<task>/sft.yaml

Rows: {"prompt", "completion"}, or whole texts in a column `text` (TRL's `dataset_text_field`). A thin script
over TRL's SFTTrainer, whose keys all apply, beside `merge_adapter` and those of ivg/training/arguments.py.
Killed and started again with the same command, it goes on from its last complete checkpoint.
"""

import sys

from ivg.errors import exit_on_user_error, needs

with needs("train"):
    from trl import SFTTrainer

    from ivg.run.processes import end_processes
    from ivg.training import arguments, checks, merging, trl_stage
    from ivg.training.cards import CardMixin
    from ivg.training.resume import own_output


class Trainer(CardMixin, SFTTrainer):
    """TRL's trainer with our model card."""


@exit_on_user_error
def main() -> None:
    """Check, train, save."""
    data_args, training, model_args = arguments.parse_training(merging.SFTArguments, sys.argv[1:])
    merging.check_merging(training, model_args)
    model_args.set_task("CAUSAL_LM")
    with own_output(training.output_dir):
        text_field = training.dataset_text_field
        columns = (checks.COMPLETION, ("messages",), (text_field,))
        job = trl_stage.prepare(data_args, training, model_args, columns, text_field)
        trainer = trl_stage.build(Trainer, job, training, model_args)
        trl_stage.train(trainer, "sft", data_args, model_args, objective="log-likelihood of the next token")
        if training.merge_adapter:
            merging.save_merged(job.model, training, job.tokenizer)
    end_processes()


if __name__ == "__main__":
    main()
