"""A good citizen of Spark ML, on real executors."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import StandardScaler, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder

import firesteel
from firesteel.ml import TorchClassificationModel, TorchClassifier, TorchRegressor

pytestmark = pytest.mark.spark
QUIET = {"progress": "none", "workers": 2}


def net(hidden: int = 32) -> torch.nn.Module:
    return firesteel.models.MLP(64, hidden, 10)


@pytest.fixture(scope="module")
def digits(spark):
    train, test = firesteel.datasets.digits().frame(spark)
    return train.cache(), test.cache()


def vectors(frame):
    from pyspark.ml.functions import array_to_vector

    return frame.withColumn("features", array_to_vector(frame.features.cast("array<double>")))


def classifier(**settings):
    chosen = {"model": net, "epochs": 12, "optimizer": firesteel.Adam(lr=5e-3), "batchSize": 32, **QUIET, **settings}
    return TorchClassifier(**chosen)


def test_fit_and_transform(digits):
    train, test = digits
    model = classifier(strategy=firesteel.ModelAveraging(4)).fit(vectors(train))
    out = model.transform(vectors(test))
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(out) > 0.93
    assert out.columns == ["features", "label", "rawPrediction", "probability", "prediction"]
    assert isinstance(out.schema["probability"].dataType, VectorUDT)
    rows = out.limit(50).toPandas()
    x = torch.tensor(np.stack([v.toArray() for v in rows.features]), dtype=torch.float32)
    with torch.no_grad():
        outputs = model.module(x)
    assert rows.prediction.tolist() == outputs.argmax(1).tolist()
    np.testing.assert_allclose(np.stack([v.toArray() for v in rows.probability]).sum(1), 1)
    np.testing.assert_allclose(np.stack([v.toArray() for v in rows.rawPrediction]), outputs.numpy(), atol=1e-5)
    assert model.numClasses == 10 and model.run.status == "finished"
    slim = model.copy().setProbabilityCol("").setRawPredictionCol("").transform(test)
    assert slim.columns == ["features", "label", "prediction"]
    assert slim.repartition(7).where("label > 100").count() == 0


def test_a_pipeline_saved_and_loaded_predicts_the_same_bits(spark, digits, tmp_path):
    train, test = digits
    columns = [f"x{i}" for i in range(64)]
    wide = lambda f: f.select("label", *(f.features[i].alias(c) for i, c in enumerate(columns)))  # noqa: E731
    stages = [VectorAssembler(inputCols=columns, outputCol="raw"), StandardScaler(inputCol="raw", outputCol="features")]
    pipeline = Pipeline(stages=[*stages, classifier(epochs=4, strategy=firesteel.SyncSGD(), seed=3)])
    pipeline.write().overwrite().save(str(tmp_path / "pipeline"))
    again = Pipeline.load(str(tmp_path / "pipeline"))
    assert again.getStages()[2].getStrategy() == firesteel.SyncSGD()
    fitted, refitted = pipeline.fit(wide(train)), again.fit(wide(train))
    fitted.write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    answers = [
        m.transform(wide(test)).select(vector_to_array("rawPrediction").alias("r")).toPandas().r.tolist()
        for m in (fitted, loaded, refitted)
    ]
    for other in answers[1:]:
        np.testing.assert_array_equal(np.stack(answers[0]), np.stack(other))
    assert (tmp_path / "model" / "stages").exists()


@pytest.mark.parametrize(
    ("strategy", "epochs"),
    [
        (firesteel.TaylorADMM(gamma=(10.0,), beta=(1.0, 1.0)), 5),
        (firesteel.DlADMM(ridge=0.1), 10),
        (firesteel.VectorFreeLBFGS(l2=1e-3), 20),
    ],
    ids=lambda given: type(given).__name__,
)
def test_strategies_without_an_optimizer_are_estimators_too(digits, tmp_path, strategy, epochs):
    train, test = digits
    estimator = TorchClassifier(model=net, strategy=strategy, epochs=epochs, validation=0.1, **QUIET)
    estimator.save(str(tmp_path / "e"))
    again = TorchClassifier.load(str(tmp_path / "e"))
    assert again.getStrategy() == strategy
    model = again.fit(train)
    assert MulticlassClassificationEvaluator(metricName="accuracy").evaluate(model.transform(test)) > 0.85
    assert {"objective", "rounds", "validation_accuracy"} <= set(model.run.history.column_names)


def test_a_lambda_is_saved_by_export(digits, tmp_path):
    train, test = digits
    model = classifier(model=lambda: torch.nn.Sequential(torch.nn.Linear(64, 10)), epochs=2).fit(train)
    model.save(str(tmp_path / "m"))
    loaded = TorchClassificationModel.load(str(tmp_path / "m"))
    first, second = (m.transform(test).select("prediction").toPandas().prediction.tolist() for m in (model, loaded))
    assert first == second


def test_cross_validation_finds_the_better_setting(digits):
    train, _ = digits
    estimator = classifier(epochs=3)
    optimizers = [firesteel.Adam(lr=1e-9), firesteel.Adam(lr=5e-3)]
    grid = ParamGridBuilder().addGrid(estimator.optimizer, optimizers).build()
    evaluator = MulticlassClassificationEvaluator(metricName="accuracy")
    found = CrossValidator(estimator=estimator, estimatorParamMaps=grid, evaluator=evaluator, numFolds=2).fit(train)
    assert found.avgMetrics[1] > 0.8 > 0.3 > found.avgMetrics[0]


def test_regression(spark):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 3))
    rows = [(Vectors.dense(a), float(a @ [1.0, -2.0, 0.5] + 3)) for a in x]
    frame = spark.createDataFrame(rows, ["features", "label"])
    model = TorchRegressor(
        model=functools.partial(torch.nn.Linear, 3, 1), epochs=60, optimizer=firesteel.Adam(lr=0.05), batchSize=16, **QUIET
    ).fit(frame)
    assert RegressionEvaluator(metricName="rmse").evaluate(model.transform(frame)) < 0.05
    np.testing.assert_allclose(model.module.weight.detach().numpy(), [[1.0, -2.0, 0.5]], atol=0.05)


def test_sparse_vectors_are_like_dense_ones(spark):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((80, 6)) * (rng.random((80, 6)) < 0.4)
    sparse = [(Vectors.dense(a) if i % 3 == 0 else Vectors.sparse(6, dict(enumerate(a))), int(i % 2)) for i, a in enumerate(x)]
    dense = [(Vectors.dense(a), int(i % 2)) for i, a in enumerate(x)]
    settings = {"model": functools.partial(firesteel.models.MLP, 6, 4, 2), "epochs": 2, **QUIET}
    models = [
        TorchClassifier(**settings).fit(spark.createDataFrame(r, ["features", "label"]).coalesce(1)) for r in (sparse, dense)
    ]
    one, two = (torch.cat([p.reshape(-1) for p in m.module.parameters()]) for m in models)
    assert torch.equal(one, two)


def test_weights_count_like_repeated_rows(spark):
    x = np.random.default_rng(2).standard_normal((40, 3))
    rows = [(a.tolist(), float(a.sum()), float(i % 3)) for i, a in enumerate(x)]
    repeated = [(a, b, 1.0) for a, b, w in rows for _ in range(int(w))]
    settings = {
        "model": functools.partial(torch.nn.Linear, 3, 1), "batchSize": 500, "epochs": 20, "weightCol": "w",
        "optimizer": firesteel.SGD(lr=0.1), **QUIET,
    }  # fmt: skip
    one, two = (
        TorchRegressor(**settings).fit(spark.createDataFrame(r, ["features", "label", "w"])).module.weight
        for r in (rows, repeated)
    )
    torch.testing.assert_close(one, two, atol=1e-5, rtol=0)


def test_the_validation_column_and_early_stopping(digits):
    train, _ = digits
    marked = train.withColumn("held", train.label % 5 == 0)
    model = classifier(
        validationIndicatorCol="held",
        epochs=40,
        earlyStopping=firesteel.EarlyStopping(patience=2),
        metrics=("accuracy",),
        scoreTraining=1.0,
    ).fit(marked)
    held = marked.where("held").count()
    assert model.run.status == "stopped early"
    assert model.run.history.num_rows < 40
    # Classes 0 and 5 were never trained on, so nothing of what was held out can be right.
    assert model.run.metrics["validation_accuracy"] < 0.05 and held > 0
    own = model.run.evaluate(marked.where("not held"))
    assert model.run.metrics["training_accuracy"] == pytest.approx(own["accuracy"])


def test_wrong_parameters_are_refused(digits):
    train, _ = digits
    with pytest.raises(firesteel.UsageError, match=r"no parameter 'batch_size'. Did you mean 'batchSize'"):
        TorchClassifier(batch_size=3)
    with pytest.raises(firesteel.UsageError, match="needs model="):
        TorchClassifier(**QUIET).fit(train)
    with pytest.raises(firesteel.UsageError, match="both say which rows"):
        classifier(validationIndicatorCol="label", validation=0.2).fit(train)
    with pytest.raises(firesteel.UsageError, match="no column 'lebal'"):
        classifier(labelCol="lebal").fit(train)
    with pytest.raises(firesteel.UsageError, match="cannot be saved"):
        classifier(model=lambda: net()).save("nowhere")
