"""The options that several commands have, each with its one text and its one range; the defaults are the commands'."""

from pathlib import Path
from typing import Annotated

from typer import Option

from setpoint.cli.bench_options import KEY_VARIABLE
from setpoint.loadgen.target import PATHS

# the deployment that step times are computed for
CatalogModel = Annotated[
    str | None, Option(help="A model of the catalog, such as llama-3.1-8b, or a config.json or .gguf.")
]
Hardware = Annotated[str | None, Option(help="A GPU of the catalog, such as h100-sxm.")]
Quantization = Annotated[str, Option(help="Format of the weights.")]
Fp8Kv = Annotated[bool, Option("--fp8-kv", help="Keep the KV cache in 8 bits.")]
TensorParallel = Annotated[int, Option(help="GPUs that share each layer.", min=1)]
CatalogFile = Annotated[Path | None, Option("--catalog", help="A TOML file with models and hardware of your own.")]

# the load
Prompt = Annotated[str, Option(help="Prompt tokens: 256, uniform:1-500, lognormal:mean=200,cv=0.8.")]
Output = Annotated[str, Option(help="Output tokens, in the same form.")]
Burstiness = Annotated[float, Option(help="Of arrivals: 0 even, 1 Poisson, more in bursts.", min=0.0)]
Classes = Annotated[
    list[str] | None,
    Option("--class", help="One class of a mix: 'chat share=0.7 prompt=200 output=64 band=1'; repeatable."),
]
Prefix = Annotated[int, Option(help="Tokens of each prompt that are shared.", min=0)]
Prefixes = Annotated[int, Option(help="How many such shared texts there are.", min=1)]
Turns = Annotated[str, Option(help="Turns of a conversation, a number or a distribution.")]
Think = Annotated[float, Option(help="Mean seconds between turns.", min=0.0)]
TraceForm = Annotated[str | None, Option(help="Its form, where the first line does not tell.")]
PromptMax = Annotated[int | None, Option(help="Clip the trace's prompts to so many tokens.", min=1)]
OutputMax = Annotated[int | None, Option(help="Clip the trace's answers.", min=1)]
LengthScale = Annotated[float, Option(help="Multiply the trace's lengths.", min=0.0)]

# the endpoint
ApiName = Annotated[str, Option(help=f"One of {', '.join(PATHS)}.")]
AskedModel = Annotated[str, Option(help="The model to ask for; the server's first if left out.")]
EngineName = Annotated[str, Option(help="Which engine it is, where that cannot be told.")]
ApiKey = Annotated[str | None, Option(envvar=KEY_VARIABLE, help="A bearer key.", show_default=False)]
Headers = Annotated[list[str] | None, Option("--header", help="A header 'name: value'; repeatable.")]
ExtraBody = Annotated[str | None, Option(help="JSON object added to each request.")]
