"""A process that listens to the row changes of the table `counted` until SIGTERM."""

import sys

from blacksmith_dagster import Blacksmith, Secret
from blacksmith_dagster.sources import PostgresSource
from tests.support.processes.listening import listen

URL = "BLACKSMITH_TEST_CRM_URL"

crm = PostgresSource("crm", url=Secret(URL))
counted = crm.changes("counted", tables=["counted"], snapshot=True)
blacksmith = Blacksmith(sources=[crm], destinations=[])


if __name__ == "__main__":
    sys.exit(listen(blacksmith, crm))
