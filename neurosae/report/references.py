"""The works that a methods paragraph may cite: key -> (text, link)."""

from __future__ import annotations

REFERENCES: dict[str, tuple[str, str]] = {
    "allefeld2014": (
        "Allefeld C, Haynes J-D (2014). Searchlight-based multi-voxel pattern analysis of fMRI by cross-validated "
        "MANOVA. NeuroImage 89, 345–357.",
        "https://doi.org/10.1016/j.neuroimage.2013.11.043",
    ),
    "allefeld2016": (
        "Allefeld C, Görgen K, Haynes J-D (2016). Valid population inference for information-based imaging: from the "
        "second-level t-test to prevalence inference. NeuroImage 141, 378–392.",
        "https://doi.org/10.1016/j.neuroimage.2016.07.040",
    ),
    "bemis2011": (
        "Bemis DK, Pylkkänen L (2011). Simple composition: a magnetoencephalography investigation into the "
        "comprehension of minimal linguistic phrases. Journal of Neuroscience 31, 2801–2814.",
        "https://doi.org/10.1523/JNEUROSCI.5003-10.2011",
    ),
    "bertschinger2014": (
        "Bertschinger N, Rauh J, Olbrich E, Jost J, Ay N (2014). Quantifying unique information. Entropy 16, "
        "2161–2183.",
        "https://doi.org/10.3390/e16042161",
    ),
    "mclaren2012": (
        "McLaren DG, Ries ML, Xu G, Johnson SC (2012). A generalized form of context-dependent psychophysiological "
        "interactions (gPPI): a comparison to standard approaches. NeuroImage 61, 1277–1286.",
        "https://doi.org/10.1016/j.neuroimage.2012.03.068",
    ),
    "benjamini1995": (
        "Benjamini Y, Hochberg Y (1995). Controlling the false discovery rate: a practical and powerful approach to "
        "multiple testing. Journal of the Royal Statistical Society B 57, 289–300.",
        "https://doi.org/10.1111/j.2517-6161.1995.tb02031.x",
    ),
    "benjamini2001": (
        "Benjamini Y, Yekutieli D (2001). The control of the false discovery rate in multiple "
        "testing under dependency. "
        "Annals of Statistics 29, 1165–1188.",
        "https://doi.org/10.1214/aos/1013699998",
    ),
    "bogomolov2014": (
        "Benjamini Y, Bogomolov M (2014). Selective inference on multiple families of hypotheses. Journal of the Royal "
        "Statistical Society B 76, 297–318.",
        "https://doi.org/10.1111/rssb.12028",
    ),
    "lakens2017": (
        "Lakens D (2017). Equivalence tests: a practical primer for t tests, correlations, and meta-analyses. Social "
        "Psychological and Personality Science 8, 355–362.",
        "https://doi.org/10.1177/1948550617697177",
    ),
    "schuirmann1987": (
        "Schuirmann DJ (1987). A comparison of the two one-sided tests procedure and the power approach for assessing "
        "the equivalence of average bioavailability. Journal of Pharmacokinetics and Biopharmaceutics 15, 657–680.",
        "https://doi.org/10.1007/BF01068419",
    ),
    "anderson2001": (
        "Anderson MJ (2001). A new method for non-parametric multivariate analysis of variance. Austral Ecology 26, "
        "32–46.",
        "https://doi.org/10.1111/j.1442-9993.2001.01070.pp.x",
    ),
    "bernardi2020": (
        "Bernardi S, Benna MK, Rigotti M, Munuera J, Fusi S, Salzman CD (2020). The geometry of abstraction in the "
        "hippocampus and prefrontal cortex. Cell 183, 954–967.",
        "https://doi.org/10.1016/j.cell.2020.09.031",
    ),
    "kobak2016": (
        "Kobak D, Brendel W, Constantinidis C, et al. (2016). Demixed principal component analysis of neural "
        "population data. eLife 5, e10989.",
        "https://doi.org/10.7554/eLife.10989",
    ),
    "ojala2010": (
        "Ojala M, Garriga GC (2010). Permutation tests for studying classifier performance. Journal of Machine "
        "Learning Research 11, 1833–1863.",
        "",
    ),
    "tibshirani1996": (
        "Tibshirani R (1996). Regression shrinkage and selection via the lasso. Journal of the Royal Statistical "
        "Society B 58, 267–288.",
        "https://doi.org/10.1111/j.2517-6161.1996.tb02080.x",
    ),
    "greenhouse1959": (
        "Greenhouse SW, Geisser S (1959). On methods in the analysis of profile data. Psychometrika 24, 95–112.",
        "https://doi.org/10.1007/BF02289823",
    ),
    "mauchly1940": (
        "Mauchly JW (1940). Significance test for sphericity of a normal n-variate distribution. Annals of "
        "Mathematical Statistics 11, 204–209.",
        "https://doi.org/10.1214/aoms/1177731915",
    ),
    "olejnik2003": (
        "Olejnik S, Algina J (2003). Generalized eta and omega squared statistics: measures of effect size for some "
        "common research designs. Psychological Methods 8, 434–447.",
        "https://doi.org/10.1037/1082-989X.8.4.434",
    ),
    "clark1973": (
        "Clark HH (1973). The language-as-fixed-effect fallacy: a critique of language statistics in psychological "
        "research. Journal of Verbal Learning and Verbal Behavior 12, 335–359.",
        "https://doi.org/10.1016/S0022-5371(73)80014-3",
    ),
    "clopper1934": (
        "Clopper CJ, Pearson ES (1934). The use of confidence or fiducial limits illustrated in the case of the "
        "binomial. Biometrika 26, 404–413.",
        "https://doi.org/10.1093/biomet/26.4.404",
    ),
    "diedrichsen2017": (
        "Diedrichsen J, Kriegeskorte N (2017). Representational models: a common framework for understanding encoding, "
        "pattern-component, and representational-similarity analysis. PLoS Computational Biology 13, e1005508.",
        "https://doi.org/10.1371/journal.pcbi.1005508",
    ),
    "freedman1983": (
        "Freedman D, Lane D (1983). A nonstochastic interpretation of reported significance levels. Journal of "
        "Business & Economic Statistics 1, 292–298.",
        "https://doi.org/10.1080/07350015.1983.10509354",
    ),
    "holm1979": (
        "Holm S (1979). A simple sequentially rejective multiple test procedure. Scandinavian Journal of Statistics 6, "
        "65–70.",
        "https://www.jstor.org/stable/4615733",
    ),
    "huben2024": (
        "Huben R, Cunningham H, Riggs Smith L, Ewart A, Sharkey L (2024). Sparse autoencoders "
        "find highly interpretable "
        "features in language models. International Conference on Learning Representations.",
        "https://arxiv.org/abs/2309.08600",
    ),
    "liang1986": (
        "Liang K-Y, Zeger SL (1986). Longitudinal data analysis using generalized linear models. Biometrika 73, 13–22.",
        "https://doi.org/10.1093/biomet/73.1.13",
    ),
    "kriegeskorte2009": (
        "Kriegeskorte N, Simmons WK, Bellgowan PSF, Baker CI (2009). Circular analysis in systems neuroscience: the "
        "dangers of double dipping. Nature Neuroscience 12, 535–540.",
        "https://doi.org/10.1038/nn.2303",
    ),
    "lugannani1980": (
        "Lugannani R, Rice S (1980). Saddle point approximation for the distribution of the sum of independent random "
        "variables. Advances in Applied Probability 12, 475–490.",
        "https://doi.org/10.2307/1426607",
    ),
    "mackinnon1985": (
        "MacKinnon JG, White H (1985). Some heteroskedasticity-consistent covariance matrix estimators with improved "
        "finite sample properties. Journal of Econometrics 29, 305–325.",
        "https://doi.org/10.1016/0304-4076(85)90158-7",
    ),
    "maris2007": (
        "Maris E, Oostenveld R (2007). Nonparametric statistical testing of EEG- and MEG-data. Journal of Neuroscience "
        "Methods 164, 177–190.",
        "https://doi.org/10.1016/j.jneumeth.2007.03.024",
    ),
    "nichols2005": (
        "Nichols T, Brett M, Andersson J, Wager T, Poline J-B (2005). Valid conjunction inference with the minimum "
        "statistic. NeuroImage 25, 653–660.",
        "https://doi.org/10.1016/j.neuroimage.2004.12.005",
    ),
    "storey2002": (
        "Storey JD (2002). A direct approach to false discovery rates. Journal of the Royal Statistical Society B 64, "
        "479–498.",
        "https://doi.org/10.1111/1467-9868.00346",
    ),
    "winkler2016": (
        "Winkler AM, Webster MA, Brooks JC, Tracey I, Smith SM, Nichols TE (2016). Non-parametric combination and "
        "related permutation tests for neuroimaging. Human Brain Mapping 37, 1486–1511.",
        "https://doi.org/10.1002/hbm.23115",
    ),
    "nichols2002": (
        "Nichols TE, Holmes AP (2002). Nonparametric permutation tests for functional neuroimaging: a primer with "
        "examples. Human Brain Mapping 15, 1–25.",
        "https://doi.org/10.1002/hbm.1058",
    ),
    "nili2014": (
        "Nili H, Wingfield C, Walther A, Su L, Marslen-Wilson W, Kriegeskorte N (2014). A toolbox for representational "
        "similarity analysis. PLoS Computational Biology 10, e1003553.",
        "https://doi.org/10.1371/journal.pcbi.1003553",
    ),
    "patterson1971": (
        "Patterson HD, Thompson R (1971). Recovery of inter-block information when block sizes are unequal. Biometrika "
        "58, 545–554.",
        "https://doi.org/10.1093/biomet/58.3.545",
    ),
    "phipson2010": (
        "Phipson B, Smyth GK (2010). Permutation p-values should never be zero: calculating exact p-values when "
        "permutations are randomly drawn. Statistical Applications in Genetics and Molecular Biology 9, 39.",
        "https://doi.org/10.2202/1544-6115.1585",
    ),
    "schutt2023": (
        "Schütt HH, Kipnis AD, Diedrichsen J, Kriegeskorte N (2023). Statistical inference on representational "
        "geometries. eLife 12, e82566.",
        "https://doi.org/10.7554/eLife.82566",
    ),
    "sassenhagen2019": (
        "Sassenhagen J, Draschkow D (2019). Cluster-based permutation tests of MEG/EEG data do not establish "
        "significance of effect latency or location. Psychophysiology 56, e13335.",
        "https://doi.org/10.1111/psyp.13335",
    ),
    "smith2009": (
        "Smith SM, Nichols TE (2009). Threshold-free cluster enhancement: addressing problems of smoothing, threshold "
        "dependence and localisation in cluster inference. NeuroImage 44, 83–98.",
        "https://doi.org/10.1016/j.neuroimage.2008.03.061",
    ),
    "smyth2004": (
        "Smyth GK (2004). Linear models and empirical Bayes methods for assessing differential "
        "expression in microarray "
        "experiments. Statistical Applications in Genetics and Molecular Biology 3, 3.",
        "https://doi.org/10.2202/1544-6115.1027",
    ),
    "walther2016": (
        "Walther A, Nili H, Ejaz N, Alink A, Kriegeskorte N, Diedrichsen J (2016). Reliability of "
        "dissimilarity measures "
        "for multi-voxel pattern analysis. NeuroImage 137, 188–200.",
        "https://doi.org/10.1016/j.neuroimage.2015.12.012",
    ),
    "westfall1993": (
        "Westfall PH, Young SS (1993). Resampling-Based Multiple Testing: Examples and Methods for p-Value Adjustment. "
        "Wiley, New York.",
        "",
    ),
    "winkler2014": (
        "Winkler AM, Ridgway GR, Webster MA, Smith SM, Nichols TE (2014). Permutation inference for the general linear "
        "model. NeuroImage 92, 381–397.",
        "https://doi.org/10.1016/j.neuroimage.2014.01.060",
    ),
    "elhage2021": (
        "Elhage N, Nanda N, Olsson C, Henighan T, Joseph N, Mann B, … Olah C (2021). A mathematical framework for "
        "transformer circuits. Transformer Circuits Thread.",
        "https://transformer-circuits.pub/2021/framework/index.html",
    ),
    "jain2019": (
        "Jain S, Wallace BC (2019). Attention is not explanation. Proceedings of NAACL-HLT 2019, 3543–3556.",
        "https://doi.org/10.18653/v1/N19-1357",
    ),
    "heimersheim2024": (
        "Heimersheim S, Nanda N (2024). How to use and interpret activation patching.",
        "https://arxiv.org/abs/2404.15255",
    ),
    "meng2022": (
        "Meng K, Bau D, Andonian A, Belinkov Y (2022). Locating and editing factual associations in GPT. Advances in "
        "Neural Information Processing Systems 35.",
        "https://arxiv.org/abs/2202.05262",
    ),
    "nanda2023": (
        "Nanda N (2023). Attribution patching: activation patching at industrial scale.",
        "https://www.neelnanda.io/mechanistic-interpretability/attribution-patching",
    ),
    "nostalgebraist2020": (
        "nostalgebraist (2020). Interpreting GPT: the logit lens. LessWrong.",
        "https://www.lesswrong.com/posts/AcKRB8wDpdaN6v6ru/interpreting-gpt-the-logit-lens",
    ),
    "olsson2022": (
        "Olsson C, Elhage N, Nanda N, Joseph N, DasSarma N, Henighan T, … Olah C (2022). In-context learning and "
        "induction heads. Transformer Circuits Thread.",
        "https://arxiv.org/abs/2209.11895",
    ),
    "sundararajan2017": (
        "Sundararajan M, Taly A, Yan Q (2017). Axiomatic attribution for deep networks. Proceedings of ICML 2017, "
        "3319–3328.",
        "https://proceedings.mlr.press/v70/sundararajan17a.html",
    ),
}
CITED = {
    "maxT": "[westfall1993; nichols2002]",
    "stepdown": "[westfall1993]",
    "holm": "[holm1979]",
    "maxT+holm": "[westfall1993; holm1979]",
    "cluster": "[maris2007; sassenhagen2019]",
    "tfce": "[smith2009]",
}
CITED |= {"storey": "[storey2002]", "bb": "[bogomolov2014]"}
CITED |= {"fdr_bh": "[benjamini1995]", "fdr_by": "[benjamini2001]", "none": ""}
