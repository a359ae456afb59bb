"""Handwritten digits on an embedded Spark with two executors: train, test, plot, save, load, predict."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

os.environ["PYSPARK_PYTHON"] = sys.executable

import torch
from pyspark.sql import SparkSession

import firesteel


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    print("Starting Spark with two executors, local-cluster[2,1,2048] ...", flush=True)
    spark = (
        SparkSession.builder.master("local-cluster[2,1,2048]")
        .appName("firesteel demo")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.log.level", "OFF")
        .getOrCreate()
    )
    digits = firesteel.datasets.digits()
    train, test = digits.frame(spark)
    spark_seconds = time.perf_counter() - began

    print("Training: two workers, each with its half of the rows, averaging their models every 4 steps ...", flush=True)
    run = firesteel.train(
        firesteel.models.MLP(64, 256, 128, 10),
        train,
        optimizer=firesteel.Adam(lr=2e-3),
        strategy=firesteel.ModelAveraging(period=4),
        on=firesteel.Spark(workers=2),
        batch_size=32,
        epochs=40,
        validation=0.1,
    )
    began = time.perf_counter()
    scores = run.evaluate(test)
    test_seconds = time.perf_counter() - began
    model_path, plot_path = folder / "model", folder / "curves.png"
    how = run.save(model_path)
    run.plot(plot_path)

    timing = run.timing
    print(f"\nTest accuracy: {scores['accuracy']:.4f}   (loss {scores['loss']:.4f}, {len(digits.test[0])} rows)\n")
    print("How long each part took, in seconds:")
    for part, seconds in {
        "start Spark and its executors": spark_seconds,
        "call to the first training step": timing["call_to_first_step_seconds"],
        "  of this, rows to tensors": timing["data_seconds"],
        f"training ({timing['samples_per_second']:,.0f} samples/s)": timing["train_seconds"],
        "evaluation of 40 published models": timing["evaluate_seconds"],
        "test": test_seconds,
    }.items():
        print(f"  {part:40}{seconds:8.2f}")
    print(f"\nModel: {model_path} (saved by {how})\nPlot:  {plot_path}\n")

    model = firesteel.load(model_path)
    images, labels = (torch.from_numpy(part[:10]) for part in digits.test)
    with torch.no_grad():
        guesses = model(images).argmax(1)
    print(f"Loaded back, it says  {' '.join(map(str, guesses.tolist()))}")
    print(f"for digits that are   {' '.join(map(str, labels.tolist()))}")
    spark.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/digits"))
