"""Entry point of `scene-dynamics VERB key=value ...` and `python -m jobs VERB key=value ...`."""

from __future__ import annotations

import difflib
import runpy
import sys

VERBS = {
    "acquire": "list videos into a sources manifest: folders, URLs, Flickr, YFCC100M, UCF101",
    "plan": "estimate the cost of a corpus and of a training run",
    "prepare": "decode, cut, stabilize, filter and pack videos into a dataset",
    "dataset": "inspect, verify, export or edit a prepared dataset",
    "train": "train the video GAN, a future model or the autoencoder baseline",
    "generate": "generate clips from a model: mp4, gif, grids, stream panels",
    "predict": "predict the future of still images",
    "finetune": "label-fraction sweep on UCF101 (figure 4)",
    "evaluate": "video distances, motion and mask statistics, memorization",
    "inspect": "show the clips with the highest activations of hidden units (figure 6)",
    "study": "two-alternative preference study with human raters (table 1)",
    "demo": "run the whole pipeline on this machine in minutes",
    "submit": "submit any of these jobs to a Ray cluster",
}


def main() -> None:
    """Run the job named by the first argument with the remaining ones."""
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if verb in ("-h", "--help", "help"):
        from jobs.cli import print_page

        usage = "scene-dynamics VERB key=value ...    (scene-dynamics VERB --help lists a job's options)\n"
        print_page("\n".join([usage, *(f"  {name:<10}{about}" for name, about in VERBS.items())]))
        raise SystemExit(0)
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"error: unknown job {verb!r}{hint} (scene-dynamics --help lists them)", file=sys.stderr)
        raise SystemExit(2)
    sys.argv = [f"jobs.{verb}", *sys.argv[2:]]
    runpy.run_module(f"jobs.{verb}", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
