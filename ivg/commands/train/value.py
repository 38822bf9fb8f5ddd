"""Train an explicit value model: a scorer of prefixes, on a stock token-classification class.

    ivg train value --config recipes/<task>/value.yaml

Rows: {"prompt", "completion", "reward"} for the objectives fudge and cd-q, {"prompt", "chosen", "rejected"}
for prefix-bt. The evaluation rows say whether the model is any good: rank correlation, pairwise accuracy and
calibration by prefix position, in `value_evaluation.json` and `.png`. Keys: ivg/training/value/arguments.py,
ivg/training/arguments.py, and all of transformers' TrainingArguments.
"""

import sys
from pathlib import Path

from ivg.errors import exit_on_user_error, needs

with needs("train"):
    import matplotlib  # noqa: F401  what is drawn after training needs it
    from trl import get_peft_config, get_quantization_config

    from ivg.evaluation.report.figures import plot_evaluation
    from ivg.run.json_files import write_json
    from ivg.run.processes import end_processes
    from ivg.training import arguments, trl_stage
    from ivg.training.resume import own_output
    from ivg.training.value import stage
    from ivg.training.value.arguments import ValueTrainingArguments
    from ivg.training.value.policy import load_policy
    from ivg.training.value.trainer import ValueTrainer


@exit_on_user_error
def main() -> None:
    """Check, train, judge, save."""
    data_args, training, model_args = arguments.parse_training(ValueTrainingArguments, sys.argv[1:])
    with own_output(training.output_dir):
        job = stage.prepare(data_args, training, model_args)
        with arguments.refused_settings("value training", training, model_args):
            model = stage.load_model(
                job, training, get_quantization_config(model_args), get_peft_config(model_args)
            )
            trainer = ValueTrainer(
                model=model,
                args=training,
                tokenizer=job.tokenizer,
                train_rows=job.train_rows,
                eval_rows=job.eval_rows,
                scale=job.scale,
                policy=load_policy(training),
            )
        trainer.prompt_format = job.prompt_format
        trl_stage.train(
            trainer,
            "value",
            data_args,
            model_args,
            objective=training.objective,
            head=training.head,
            policy=training.policy_model or "none: the next token is the one that came",
            **{"value unit": training.unit, "reward mean": job.scale.mean, "reward std": job.scale.std},
        )
        if trainer.table and trainer.is_world_process_zero():
            output = Path(training.output_dir)
            write_json(output / "value_evaluation.json", trainer.table, sort_keys=True)
            plot_evaluation(trainer.table, output / "value_evaluation.png", training.judged_unit)
    end_processes()


if __name__ == "__main__":
    main()
