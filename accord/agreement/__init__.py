"""Whether judgements can be trusted: agreement, reliability and habits of judges, with intervals and plain warnings."""

from accord.agreement.coefficients import cohen_kappa, fleiss_kappa, krippendorff_alpha
from accord.agreement.discretion import discretion_report
from accord.agreement.report import measure_agreement
from accord.agreement.values import AgreementReport, Coefficients, DiscretionReport, Estimate, JudgeReport

__all__ = [
    "AgreementReport",
    "Coefficients",
    "DiscretionReport",
    "Estimate",
    "JudgeReport",
    "cohen_kappa",
    "discretion_report",
    "fleiss_kappa",
    "krippendorff_alpha",
    "measure_agreement",
]
