"""Scores the answers of benchmarks. `RULES` lists every rule. `benchmarks` says which protocol uses which rule."""

from __future__ import annotations

from minigptv2.evaluate.metrics.lemmas import check_lemmatizer
from minigptv2.evaluate.rules import score_answers, score_boxes, score_texts
from minigptv2.evaluate.rules.rule import NO, YES, Prediction, Rule, Scored

__all__ = ["NO", "RULES", "YES", "Prediction", "Rule", "Scored"]

_CIDER = "CIDEr-D against all {}, printed times 100, with BLEU-4 and ROUGE-L"

_STEMS = {score_answers.STEMS: "the accepted answers are compared in the place of stems, and accuracy_raw is left out"}

RULES: dict[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule(
            "refer_published",
            "accuracy",
            "the answer, its spaces removed, begins with a box (coordinates above 100 allowed), has no further number, "
            "and the box has an IoU above 0.5 with the true one, both edge pixels counted",
            score_boxes.score_refer_published,
        ),
        Rule(
            "refer",
            "accuracy",
            "the first box anywhere in the answer (none with a coordinate above 100) has an IoU above 0.5 with the "
            "true one, both edge pixels counted",
            score_boxes.score_refer,
        ),
        Rule("vqa", "accuracy", "ten people, leave one out, VQA's normalization", score_answers.score_vqa),
        Rule(
            "okvqa_stems",
            "accuracy",
            "ten people, leave one out, VQA's normalization, against the column `answer` (stems). accuracy_raw: "
            "against `raw_answer`",
            score_answers.score_okvqa,
            facts=_STEMS,
        ),
        Rule(
            "okvqa_lemmas",
            "accuracy",
            "as okvqa_stems, with each word of the prediction lemmatized by simplemma. accuracy_raw: the prediction as "
            "it is against `raw_answer`",
            score_answers.score_okvqa_lemmas,
            check=check_lemmatizer,
            facts=_STEMS,
        ),
        Rule(
            "agreement",
            "accuracy",
            "the number of people whose answer equals the prediction, case apart, divided by 3, at most 1",
            score_answers.score_vizwiz,
        ),
        Rule(
            "direct",
            "accuracy",
            "the number of people who wrote exactly the prediction, divided by 3, at most 1. Questions marked "
            "difficult_direct_answer are left out",
            score_answers.score_direct,
        ),
        Rule("exact", "accuracy", "the normalized answer equals a normalized accepted one", score_answers.score_exact),
        Rule("lower", "accuracy", "the answer in lower case is the label as it is written", score_answers.score_gqa),
        Rule("lower_both", "accuracy", "the answer and the label are equal in lower case", score_answers.score_vsr),
        Rule(
            "choice_sum",
            "accuracy",
            "the choice with the lowest loss, summed over its tokens and the end token, is the correct one",
            score_answers.score_choice,
            choices=(),
            choice_loss="sum",
        ),
        Rule(
            "choice_mean",
            "accuracy",
            "the choice with the lowest loss per token, end token included, is the correct one",
            score_answers.score_choice_normalized,
            choices=(),
        ),
        Rule(
            "caption",
            "cider",
            _CIDER.format("captions of the image"),
            score_texts.score_caption,
            10.0,
            references=score_texts.captions_of,
        ),
        Rule(
            "identify",
            "cider",
            _CIDER.format("expressions of the object"),
            score_texts.score_identify,
            10.0,
            references=score_texts.expressions_of,
        ),
        Rule(
            "pope",
            "accuracy",
            "yes unless the first sentence has No, no or not, as in POPE",
            score_answers.score_pope,
        ),
        Rule(
            "chair",
            "faithful",
            "captions without a hallucinated object, 100 - CHAIR_s, by the official list, in which `motor bike` and "
            "`cheesecake` never match",
            score_texts.score_chair,
        ),
        Rule(
            "chair_repaired",
            "faithful",
            "as chair, with `motor bike` as a motorcycle and `cheesecake` as a cake",
            score_texts.score_chair_repaired,
        ),
        Rule(
            "hateful_labels",
            "accuracy",
            "the answer is the label yes or no, case and outer space apart. auroc: from the losses of yes and no",
            score_answers.score_hateful_labels,
            scored_choices=(YES, NO),
        ),
        Rule(
            "hateful",
            "accuracy",
            "yes unless the first sentence has No, no or not. auroc: from the losses of yes and no",
            score_answers.score_hateful,
            scored_choices=(YES, NO),
        ),
        Rule(
            "phrases",
            "phrase_recall",
            "the first box of a mention has an IoU of at least 0.5 with one of its true boxes. Every mention with "
            "boxes counts",
            score_boxes.score_phrases,
        ),
        Rule("turns", "score", "the headline metric of the task", score_texts.score_turns),
    )
}
"""Every rule by name."""
