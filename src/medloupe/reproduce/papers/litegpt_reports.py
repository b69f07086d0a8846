"""LiteGPT's Tables 8 to 13 as printed: precision, recall, F1 and support of each label."""

from __future__ import annotations

from typing import Final

REPORT_8: Final = """
Aortic enlargement | 0.35 | 0.74 | 0.47 | 220
Atelectasis | 0.00 | 0.00 | 0.00 | 86
Calcification | 0.50 | 0.01 | 0.01 | 194
Cardiomegaly | 0.56 | 0.66 | 0.61 | 309
Clavicle fracture | 0.00 | 0.00 | 0.00 | 2
Consolidation | 0.00 | 0.00 | 0.00 | 96
Edema | 0.00 | 0.00 | 0.00 | 0
Emphysema | 0.00 | 0.00 | 0.00 | 3
Enlarged PA | 0.00 | 0.00 | 0.00 | 8
ILD | 0.12 | 0.00 | 0.01 | 221
Infiltration | 0.33 | 0.02 | 0.03 | 58
Lung Opacity | 0.12 | 0.07 | 0.09 | 84
Lung cavity | 0.00 | 0.00 | 0.00 | 9
Lung cyst | 0.00 | 0.00 | 0.00 | 2
Mediastinal shift | 0.00 | 0.00 | 0.00 | 20
Nodule/Mass | 0.31 | 0.02 | 0.04 | 176
Pleural effusion | 0.24 | 0.57 | 0.34 | 111
Pleural thickening | 0.28 | 0.58 | 0.38 | 169
Pneumothorax | 0.00 | 0.00 | 0.00 | 18
Pulmonary fibrosis | 0.46 | 0.29 | 0.36 | 217
Rib fracture | 0.00 | 0.00 | 0.00 | 11
Other lesion | 0.00 | 0.00 | 0.00 | 94
micro avg | 0.36 | 0.29 | 0.32 | 2108
macro avg | 0.15 | 0.13 | 0.11 | 2108
weighted avg | 0.30 | 0.29 | 0.23 | 2108
samples avg | 0.32 | 0.32 | 0.29 | 2108
"""
REPORT_9: Final = """
Aortic enlargement | 0.31 | 0.59 | 0.41 | 220
Atelectasis | 0.09 | 0.01 | 0.02 | 86
Calcification | 0.00 | 0.00 | 0.00 | 194
Cardiomegaly | 0.56 | 0.58 | 0.57 | 309
Clavicle fracture | 0.00 | 0.00 | 0.00 | 2
Consolidation | 0.17 | 0.02 | 0.04 | 96
Edema | 0.00 | 0.00 | 0.00 | 0
Emphysema | 0.00 | 0.00 | 0.00 | 3
Enlarged PA | 0.00 | 0.00 | 0.00 | 8
ILD | 0.50 | 0.02 | 0.04 | 221
Infiltration | 0.67 | 0.03 | 0.07 | 58
Lung Opacity | 0.10 | 0.04 | 0.05 | 84
Lung cavity | 0.00 | 0.00 | 0.00 | 9
Lung cyst | 0.00 | 0.00 | 0.00 | 2
Mediastinal shift | 0.00 | 0.00 | 0.00 | 20
Nodule/Mass | 0.00 | 0.00 | 0.00 | 176
Pleural effusion | 0.23 | 0.68 | 0.35 | 111
Pleural thickening | 0.19 | 0.51 | 0.28 | 169
Pneumothorax | 0.00 | 0.00 | 0.00 | 18
Pulmonary fibrosis | 0.38 | 0.40 | 0.39 | 217
Rib fracture | 0.00 | 0.00 | 0.00 | 11
Other lesion | 0.00 | 0.00 | 0.00 | 94
micro avg | 0.31 | 0.27 | 0.29 | 2108
macro avg | 0.15 | 0.13 | 0.10 | 2108
weighted avg | 0.27 | 0.27 | 0.22 | 2108
samples avg | 0.30 | 0.30 | 0.27 | 2108
"""
REPORT_10: Final = """
Aortic enlargement | 0.34 | 0.39 | 0.36 | 220
Atelectasis | 0.33 | 0.01 | 0.02 | 86
Calcification | 0.00 | 0.00 | 0.00 | 194
Cardiomegaly | 0.49 | 0.52 | 0.50 | 309
Clavicle fracture | 0.00 | 0.00 | 0.00 | 2
Consolidation | 0.00 | 0.00 | 0.00 | 96
Edema | 0.00 | 0.00 | 0.00 | 0
Emphysema | 0.00 | 0.00 | 0.00 | 3
Enlarged PA | 0.00 | 0.00 | 0.00 | 8
ILD | 1.00 | 0.00 | 0.01 | 221
Infiltration | 0.00 | 0.00 | 0.00 | 58
Lung Opacity | 0.04 | 0.01 | 0.02 | 84
Lung cavity | 0.00 | 0.00 | 0.00 | 9
Lung cyst | 0.00 | 0.00 | 0.00 | 2
Mediastinal shift | 0.00 | 0.00 | 0.00 | 20
Nodule/Mass | 0.00 | 0.00 | 0.00 | 176
Pleural effusion | 0.32 | 0.12 | 0.17 | 111
Pleural thickening | 0.20 | 0.57 | 0.30 | 169
Pneumothorax | 0.00 | 0.00 | 0.00 | 18
Pulmonary fibrosis | 0.22 | 0.16 | 0.18 | 217
Rib fracture | 0.00 | 0.00 | 0.00 | 11
Other lesion | 0.36 | 0.09 | 0.14 | 94
micro avg | 0.30 | 0.19 | 0.23 | 2108
macro avg | 0.15 | 0.08 | 0.08 | 2108
weighted avg | 0.30 | 0.19 | 0.17 | 2108
samples avg | 0.25 | 0.20 | 0.20 | 2108
"""
REPORT_11: Final = """
COPD | 0.33 | 0.50 | 0.40 | 2
Lung tumor | 0.23 | 0.15 | 0.18 | 80
Pneumonia | 0.56 | 0.40 | 0.47 | 246
Tuberculosis | 0.63 | 0.18 | 0.28 | 164
Other disease | 0.58 | 0.59 | 0.59 | 657
No finding | 0.83 | 0.95 | 0.89 | 2051
micro avg | 0.76 | 0.77 | 0.76 | 3200
macro avg | 0.53 | 0.46 | 0.47 | 3200
weighted avg | 0.74 | 0.77 | 0.74 | 3200
samples avg | 0.78 | 0.80 | 0.79 | 3200
"""
REPORT_12: Final = """
COPD | 0.00 | 0.00 | 0.00 | 2
Lung tumor | 0.35 | 0.24 | 0.28 | 80
Pneumonia | 0.59 | 0.34 | 0.43 | 246
Tuberculosis | 0.51 | 0.23 | 0.32 | 164
Other disease | 0.62 | 0.54 | 0.58 | 657
No finding | 0.82 | 0.97 | 0.89 | 2051
micro avg | 0.76 | 0.77 | 0.77 | 3200
macro avg | 0.48 | 0.39 | 0.42 | 3200
weighted avg | 0.73 | 0.77 | 0.74 | 3200
samples avg | 0.79 | 0.80 | 0.79 | 3200
"""
REPORT_13: Final = """
COPD | 0.00 | 0.00 | 0.00 | 2
Lung tumor | 0.00 | 0.00 | 0.00 | 80
Pneumonia | 0.37 | 0.27 | 0.31 | 246
Tuberculosis | 0.34 | 0.20 | 0.25 | 164
Other disease | 0.52 | 0.51 | 0.51 | 657
No finding | 0.80 | 0.92 | 0.85 | 2051
micro avg | 0.70 | 0.72 | 0.71 | 3200
macro avg | 0.34 | 0.32 | 0.32 | 3200
weighted avg | 0.66 | 0.72 | 0.69 | 3200
samples avg | 0.74 | 0.75 | 0.74 | 3200
"""
