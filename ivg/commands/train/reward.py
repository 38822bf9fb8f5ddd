"""Train a reward model, which scores finished responses, from preferences.

    ivg train reward --config recipes/<task>/reward.yaml

Rows: {"prompt", "chosen", "rejected"}, plain or conversational. A thin script over TRL's RewardTrainer, whose
keys all apply, beside those of ivg/training/arguments.py. The result is a stock sequence classifier with one
output: it can be an explicit value model as it is, and a reward for `ivg train rollouts` and `ivg eval`.
"""

import sys

from ivg.errors import exit_on_user_error, needs

with needs("train"):
    from trl import RewardConfig, RewardTrainer

    from ivg.run.processes import end_processes
    from ivg.training import arguments, checks, trl_stage
    from ivg.training.cards import CardMixin
    from ivg.training.resume import own_output


class Trainer(CardMixin, RewardTrainer):
    """TRL's trainer with our model card."""


@exit_on_user_error
def main() -> None:
    """Check, train, save."""
    data_args, training, model_args = arguments.parse_training(RewardConfig, sys.argv[1:])
    model_args.set_task("SEQ_CLS")
    with own_output(training.output_dir):
        job = trl_stage.prepare(data_args, training, model_args, (checks.PREFERENCE,))
        trainer = trl_stage.build(Trainer, job, training, model_args)
        facts = {"objective": "Bradley-Terry", "reward unit": "preference logit"}
        trl_stage.train(trainer, "reward", data_args, model_args, **facts)
    end_processes()


if __name__ == "__main__":
    main()
