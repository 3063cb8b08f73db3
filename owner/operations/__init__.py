"""What an owner does, as plain functions: the command line is a thin layer over them.

opening   a workspace with its settings, key and ledger      founding  init, train
guarding  protect                                            people    invite, revoke, who there is
deciding  promote, rollback, vet a file                      looking   status, log, show, verify-ledger
"""
