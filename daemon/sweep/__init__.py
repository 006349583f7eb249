"""The live policy answers: one batched call for all scenarios, temperatures and samples."""
