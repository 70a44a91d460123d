"""Runs code that nobody trusts, and judges it by tests that it cannot touch.

    runner      in the worker: one call, one report; bounded concurrency
      └ supervisor   a process of its own: starts two contained processes, ends both in time
          ├ judge       holds the tests; sees the candidate's answers as plain data only
          └ candidate   holds the generated code; never sees a test or the report

`probe` finds out at start whether a backend really contains code; `backends` has the two
that are known: sandlock and bubblewrap.
"""
