"""The codes of predictions, recipes, scores and submissions, which `ensemble.error_codes` lists with all others."""

from __future__ import annotations

from ensemble.run_codes import Code

PREDICTION_CODES: dict[str, Code] = {
    # 5xx: predictions, recipes, submissions
    "E501": Code(
        "Members, or the labels, do not have the same classes.",
        "use only models of the same classes, with the labels or the table that they were trained on",
    ),
    "E502": Code(
        "Logits and probabilities are mixed, or it is unknown which of them a file contains.",
        "state the content with --as logits or --as probabilities",
    ),
    "E504": Code("Members predict different images.", "predict the same list of images with every member"),
    "E505": Code("A prediction is NaN or infinite.", "predict again; for an fp16 model, export with --precision fp32"),
    "W506": Code("A member predicts the same for every image.", "leave it out, or check its preprocessing"),
    "W508": Code(
        "A member agrees with the ground truth, or with the other members, no more than chance, or only after its classes are reordered.",
        "check its labels and preprocessing, or leave it out",
    ),
    "W507": Code("Two members are identical.", "leave out one of them, or its vote counts twice"),
    "E508": Code(
        "Weights are not valid.",
        "give every group a finite weight, none negative and at least one positive: --weights a=2,b=1",
    ),
    "E511": Code(
        "Predictions are not out-of-fold: a model was trained on some of the images.",
        "predict with each fold's model its own hold-out set; or all images, with a column fold in --truth (ens data)",
    ),
    "E512": Code(
        "One person's images are in the hold-out sets of two folds.",
        "split the folds by person and train again: scores from these folds are too optimistic",
    ),
    "E513": Code("Predictions are incomplete.", "run the command that wrote them again: it resumes"),
    "E514": Code("A path contains no predictions.", "give the folder of one member, as printed by ens predict"),
    "E515": Code("Two predictions have the same member name.", "blend each member once"),
    "E516": Code("A view is not in the predictions.", "predict with that view, or leave it out of --views"),
    "E517": Code("A recipe does not match the predictions.", "apply it to predictions of its members, with its views"),
    "E518": Code("A recipe cannot be read.", "create it again with ens blend --save"),
    "W519": Code(
        "A member has the same classes as the others in a different order.",
        "nothing to do, if the class order of the first member by name is the contest's",
    ),
    "E520": Code("A submission is not valid.", "fix the problems listed above, or write it with ens blend --like"),
    "W521": Code("A submission gives every image the same class.", "ens evaluate scores each member"),
    "I522": Code(
        "The predictions of some members are those the recipe was made from, and those of others are not.",
        "nothing to do if these members were predicted again on purpose",
    ),
    "W523": Code(
        "The ground truth has no persons: images of one face may be on both sides of a split, so scores are too optimistic.",
        "add a column person to the ground truth",
    ),
    "I524": Code("Classes with few images: parameters learned for them are shrunk.", "nothing to do"),
    "I526": Code("Out-of-fold predictions were turned into predictions like the mean of the folds.", "nothing to do"),
    "W527": Code(
        "The class mix of the predictions to be blended differs from the out-of-fold one, and the choice depends on it.",
        "see if the two sets of images should have the same mix; name a method with --method to decide yourself",
    ),
    "E525": Code("There is too little ground truth to learn from.", "blend with --method mean, or label more images"),
    "E530": Code(
        "There is no model for some members of a recipe.",
        "add the models that ens export wrote for those members, or create a recipe without them",
    ),
    "I531": Code("Models without a weight in the recipe are not run.", "nothing to do"),
    "W532": Code(
        "The time budget is too short for the whole recipe; members were left out.",
        "raise --budget, or use a faster device",
    ),
    "W533": Code(
        "There are too few images to certify the cost of early exit.",
        "predict more out-of-fold images, or use --early-exit exact, which needs none",
    ),
    "E534": Code(
        "Images that could not be read are missing from predictions or from a submission.",
        "fix the images and predict again, or predict with --on-bad-image fill; --allow-missing leaves them out",
    ),
    "W534": Code("A submission lacks images, as --allow-missing permits.", "most contests reject missing rows"),
    "W535": Code(
        "Images that could not be read have the class prior instead of a prediction.",
        "fix the files in errors.csv and predict again: filled rows are then computed",
    ),
    "E590": Code(
        "Several out-of-fold files may belong to one member.",
        "name each file after its member, or give --oof the files that are meant instead of the folder",
    ),
    "W590": Code("Images to be explained are not in the ground truth.", "add them to it, or leave --truth out"),
    "I592": Code(
        "Some models have no evidence maps in a report.", "export them with --features; models of face crops have none"
    ),
    "I590": Code("Files are matched to members or folds by their names.", "rename the files if that is wrong"),
    "I594": Code(
        "Which metric predictions are scored by, and why it is that of the recipe or not.", "name others with --metric"
    ),
    "I591": Code("Files in a folder of predictions were not read.", "name them one by one if they are predictions"),
    "E540": Code(
        "It cannot be told how a sample submission wants its answers.",
        "state it with --answers: number, name, probabilities, probability, label-columns, decisions, label-cells, "
        "ranking or long",
    ),
    "E541": Code(
        "The columns of a table are not the classes.",
        "name each column after its class, or by the class's number; --labels gives the classes",
    ),
    "E542": Code(
        "It is unknown which of two classes a single probability is of.", "name the class with --positive NAME"
    ),
    "I543": Code(
        "What a sample asks for, or how a submission without a sample is read, was chosen among several possibilities.",
        "nothing to do if the line says what you want; else state it with --answers",
    ),
    "I544": Code(
        "Columns were matched with classes by number, or despite another spelling.",
        "nothing to do if the example looks right",
    ),
    "I545": Code("Columns that are not classes were not read.", "nothing to do"),
    "W546": Code(
        "The class distribution of a submission differs from that of the training images.",
        "nothing to do if the test images have another class mix; otherwise check the order of the classes",
    ),
    "I550": Code("Predictions are smoothed over the rows of a file.", "nothing to do if the files are right"),
    "I549": Code("Metrics are about one of two classes.", "name the other one with --positive if that is meant"),
    "E548": Code(
        "This is only possible for classes that exclude each other.",
        "blend members of several labels with ens blend, and score them with ens evaluate",
    ),
    "I560": Code("An image without alpha was taken as opaque, for a model of four channels.", "nothing to do"),
    "I561": Code("Scale, mean and std of the channels were measured on training images.", "name them to use others"),
    "I562": Code("Images of their own channels are trained without augmentation.", "name one with --augment"),
    "W566": Code(
        "Predictions have a view that the out-of-fold predictions lack: the recipe leaves it out.",
        "predict the training images with that view, too, or the new ones without it",
    ),
    "E564": Code(
        "A sample asks for measured numbers, but the members predict classes or labels.",
        "values such as ages, prices or scores outside 0 to 1 are not written; --answers overrules what the sample says",
    ),
    "E565": Code(
        "A sample asks for a class and its score, in one cell or two columns, which are not written together.",
        "write the class alone with --answers name, and add the score from the probabilities of the predictions",
    ),
    "I547": Code("Several images were combined into one row.", "nothing to do"),
    "I593": Code(
        "Of predictions of all training images, those of each model's held-out images are taken, by the ground truth's column fold.",
        "check the column if the numbers of images are not those of the folds",
    ),
    "W528": Code(
        "Images to be blended are among those that a recipe is learned from.",
        "give PREDICTIONS of new images, so that it is learned for the mean of the folds",
    ),
}
