#!/usr/bin/env bash
# Real data: learning to abstain on facts about countries. The built-in model is first taught half of the facts; which
# ones it then knows is found out by asking it ten times.
#
#     benchmarks/country_facts.sh country_codes_subset.csv --out runs/country-facts [any other option of `textgym train`]
#
# The table is that of https://github.com/datasets/country-codes.
set -euo pipefail
data=$1
shift
country='{CLDR display name}'
exec "${TEXTGYM:-textgym}" train textgym/KnowledgeQA-v0 --data "$data" \
  --columns "prompt=What is the capital of $country?,references=Capital" \
  --columns "prompt=What is the currency of $country?,references=ISO4217-currency_name" \
  --columns "prompt=What is the currency code of $country?,references=ISO4217-currency_alphabetic_code" \
  --columns "prompt=What is the dialling code of $country?,references=Dial" \
  --columns "prompt=What is the two-letter code of $country?,references=ISO3166-1-Alpha-2" \
  --columns "prompt=What is the three-letter code of $country?,references=ISO3166-1-Alpha-3" \
  --columns "prompt=Which part of the world is $country in?,references=Sub-region Name" \
  --columns "prompt=Which country has the capital {Capital}?,references=CLDR display name" \
  --columns "prompt=Which country has the internet domain {TLD}?,references=CLDR display name" \
  --columns "prompt=Which country has the two-letter code {ISO3166-1-Alpha-2}?,references=CLDR display name" \
  --columns "prompt=Which country has the three-letter code {ISO3166-1-Alpha-3}?,references=CLDR display name" \
  --teach 0.5 \
  --set env.max_context=96 \
  --set teach.epochs=20 --set teach.learning_rate=1e-3 \
  --set ppo.n_episodes=256 --set ppo.batch_size=320 \
  --set 'policy.optimizer_kwargs={"eps": 1e-5}' --set ppo.learning_rate=3e-4 \
  --total-timesteps 60000 \
  "$@"
