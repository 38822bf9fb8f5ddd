"""Direct preference optimisation: makes the tuned half of a guidance pair from the untuned one.

    ivg train dpo --config recipes/<task>/dpo.yaml

Rows: {"prompt", "chosen", "rejected"}, plain or conversational. A thin script over TRL's DPOTrainer, whose
keys all apply, beside those of ivg/training/arguments.py. With `use_peft` (LoRA) the adapter switched off is
the reference, and with `precompute_ref_log_probs` its log-probabilities are computed once, and kept with the
rows in output_dir/_rows: no second copy of the model is held in either case.
"""

import sys

from ivg.errors import exit_on_user_error, needs

with needs("train"):
    from trl import DPOConfig, DPOTrainer

    from ivg.run.processes import end_processes
    from ivg.training import arguments, checks, trl_stage
    from ivg.training.cards import CardMixin
    from ivg.training.encoding import EncodedPairs
    from ivg.training.resume import own_output


class Trainer(EncodedPairs, CardMixin, DPOTrainer):
    """TRL's trainer with our model card, over rows of ids."""


def reference(trainer: Trainer) -> str:
    """Say where the reference's log-probabilities come from, and whether a copy of the model is held."""
    if trainer.ref_model is not None:
        return "a second copy of the model"
    if trainer.precompute_ref_logps:
        return "log-probabilities computed before training, no second copy"
    return "the model with its adapter switched off, no second copy"


@exit_on_user_error
def main() -> None:
    """Check, train, save."""
    data_args, training, model_args = arguments.parse_training(DPOConfig, sys.argv[1:])
    model_args.set_task("CAUSAL_LM")
    with own_output(training.output_dir):
        job = trl_stage.prepare(data_args, training, model_args, (checks.PREFERENCE,))
        trainer = trl_stage.build(Trainer, job, training, model_args)
        facts = {
            "objective": f"DPO ({', '.join(training.loss_type)})",
            "reward unit": "beta (log tuned - log untuned), in nats",
            "reference": reference(trainer),
        }
        trl_stage.train(trainer, "dpo", data_args, model_args, beta=training.beta, **facts)
    end_processes()


if __name__ == "__main__":
    main()
