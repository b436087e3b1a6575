/* Certificates and keys for the unit tests and fuzzers, as PEM texts.  The
 * keys are nobody's.  All were made by openssl 3.0, as tests/tls.py makes its
 * own: valid from 2020-01-02 03:04:05 to 2120, unless the name says else. */

/* CN = test CA, EC P-256: it has issued what follows */
#define PEM_CA \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBWjCCAQCgAwIBAgIUYU1bC2NmrKQkzRm9nu4lUHsu8MgwCgYIKoZIzj0EAwIw\n" \
    "EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEwMjAz\n" \
    "MDQwNVowEjEQMA4GA1UEAwwHdGVzdCBDQTBZMBMGByqGSM49AgEGCCqGSM49AwEH\n" \
    "A0IABKvqt/gM0BiC+6sdWQ7EF4weJTeiPJjR52hZEvtM4F45vrRjD2InmbsjXtQG\n" \
    "oRRkjIXbTN7AlFfz6UkwihMyTNCjMjAwMA8GA1UdEwEB/wQFMAMBAf8wHQYDVR0O\n" \
    "BBYEFLGsgysBQPOE5DAaIV2QrGlU6/o6MAoGCCqGSM49BAMCA0gAMEUCIQC7ulm6\n" \
    "LlZb/EThU5+wXzc5I5MjgfuQlNMXD4A3q2bfjQIgVdUP2ffWwqffz497bAUaW+aB\n" \
    "83fgGtSwYVSaTH7D5BE=\n" \
    "-----END CERTIFICATE-----\n"

/* IP:10.1.2.3 DNS:a.example.test IP:2001:db8::7 email:x@y,
 * serverAuth; of the key KEY_EC, as those that follow */
#define PEM_SERVER \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBtDCCAVmgAwIBAgIUZWjCq8yPKHHRLw3Q8jP9tIZEg2owCgYIKoZIzj0EAwIw\n" \
    "EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEwMjAz\n" \
    "MDQwNVowDDEKMAgGA1UEAwwBczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOPR\n" \
    "T9UDPVG37WD8chybIH8GXANa/x6JZThLI3KmCHq0NQhJPhn6tU0fIfpC7l29qMcV\n" \
    "dvn1vguXbjf/MbtlcHajgZAwgY0wNgYDVR0RBC8wLYcECgECA4IOYS5leGFtcGxl\n" \
    "LnRlc3SHECABDbgAAAAAAAAAAAAAAAeBA3hAeTATBgNVHSUEDDAKBggrBgEFBQcD\n" \
    "ATAdBgNVHQ4EFgQUFFFHODCl8aqICLtentjEZMhAu3swHwYDVR0jBBgwFoAUsayD\n" \
    "KwFA84TkMBohXZCsaVTr+jowCgYIKoZIzj0EAwIDSQAwRgIhAJNj+h5i5dWp9I25\n" \
    "CUbsXL7bm+FTferiBZNuEbupW+LVAiEAu3OTcpPdVFks1K5rj50AOYfCLZmaffJq\n" \
    "KwkZwV2NXnM=\n" \
    "-----END CERTIFICATE-----\n"

/* critical: IP:10.1.2.3; anyExtendedKeyUsage */
#define PEM_CRITICAL \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBiDCCAS+gAwIBAgIUaw85J2Qe+ErjntdPqDgnBhtvmIwwCgYIKoZIzj0EAwIw\n" \
    "EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEwMjAz\n" \
    "MDQwNVowDDEKMAgGA1UEAwwBczBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOPR\n" \
    "T9UDPVG37WD8chybIH8GXANa/x6JZThLI3KmCHq0NQhJPhn6tU0fIfpC7l29qMcV\n" \
    "dvn1vguXbjf/MbtlcHajZzBlMBIGA1UdEQEB/wQIMAaHBAoBAgMwDwYDVR0lBAgw\n" \
    "BgYEVR0lADAdBgNVHQ4EFgQUFFFHODCl8aqICLtentjEZMhAu3swHwYDVR0jBBgw\n" \
    "FoAUsayDKwFA84TkMBohXZCsaVTr+jowCgYIKoZIzj0EAwIDRwAwRAIgNUYYgdfC\n" \
    "FTfGNiuJb+QlU5SM9aBOgyDa7m1jKpJW0fYCIHHmoAjYFyjUKBghg5rvBGgNPDOo\n" \
    "HIN28K/LYIkia1zQ\n" \
    "-----END CERTIFICATE-----\n"

/* CN = a.example.test, no extension */
#define PEM_BARE \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBJzCBzgIUZqqtfMm/XF+eqUH+Z/t5a6u38hMwCgYIKoZIzj0EAwIwEjEQMA4G\n" \
    "A1UEAwwHdGVzdCBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEwMjAzMDQwNVow\n" \
    "GTEXMBUGA1UEAwwOYS5leGFtcGxlLnRlc3QwWTATBgcqhkjOPQIBBggqhkjOPQMB\n" \
    "BwNCAATj0U/VAz1Rt+1g/HIcmyB/BlwDWv8eiWU4SyNypgh6tDUIST4Z+rVNHyH6\n" \
    "Qu5dvajHFXb59b4Ll243/zG7ZXB2MAoGCCqGSM49BAMCA0gAMEUCIQClNHZrodWX\n" \
    "TLGOg6YGVbThHBH35o5wFXkNVFcrbffIlQIgVFQLywIxFzm81UpNcJdsjaKrT5ke\n" \
    "OyziJ25qpOtnArk=\n" \
    "-----END CERTIFICATE-----\n"

/* CN = a.example.test, DNS:b.example.test */
#define PEM_NAMES \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBjTCCATKgAwIBAgIUNKk9Mzjn2floeaXd9n0YI6lbQ/8wCgYIKoZIzj0EAwIw\n" \
    "EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEwMjAz\n" \
    "MDQwNVowGTEXMBUGA1UEAwwOYS5leGFtcGxlLnRlc3QwWTATBgcqhkjOPQIBBggq\n" \
    "hkjOPQMBBwNCAATj0U/VAz1Rt+1g/HIcmyB/BlwDWv8eiWU4SyNypgh6tDUIST4Z\n" \
    "+rVNHyH6Qu5dvajHFXb59b4Ll243/zG7ZXB2o10wWzAZBgNVHREEEjAQgg5iLmV4\n" \
    "YW1wbGUudGVzdDAdBgNVHQ4EFgQUFFFHODCl8aqICLtentjEZMhAu3swHwYDVR0j\n" \
    "BBgwFoAUsayDKwFA84TkMBohXZCsaVTr+jowCgYIKoZIzj0EAwIDSQAwRgIhALiH\n" \
    "F0HfmaTKZU2l1sG2gnoxf78zZWjamRwE2tXmlq1dAiEAyJ6JUpMwMAvm0qV2WeK1\n" \
    "ljTSE4OeP3hTwBe5xGfva+E=\n" \
    "-----END CERTIFICATE-----\n"

/* DNS:a.example.test, clientAuth */
#define PEM_CLIENT \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBlTCCATqgAwIBAgIUVXwcEHTlVB1prXqP2F1IMpCIEbEwCgYIKoZIzj0EAwIw\n" \
    "EjEQMA4GA1UEAwwHdGVzdCBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEwMjAz\n" \
    "MDQwNVowDDEKMAgGA1UEAwwBYzBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABOPR\n" \
    "T9UDPVG37WD8chybIH8GXANa/x6JZThLI3KmCHq0NQhJPhn6tU0fIfpC7l29qMcV\n" \
    "dvn1vguXbjf/MbtlcHajcjBwMBkGA1UdEQQSMBCCDmEuZXhhbXBsZS50ZXN0MBMG\n" \
    "A1UdJQQMMAoGCCsGAQUFBwMCMB0GA1UdDgQWBBQUUUc4MKXxqogIu16e2MRkyEC7\n" \
    "ezAfBgNVHSMEGDAWgBSxrIMrAUDzhOQwGiFdkKxpVOv6OjAKBggqhkjOPQQDAgNJ\n" \
    "ADBGAiEA7BzptWj7UFR3L31zpTVax6kAOOjelwN+XJRYKgsqbPICIQCRymwCp41L\n" \
    "w/11L0w02BIs0A7L2H0ezXNzIAtzbryT0A==\n" \
    "-----END CERTIFICATE-----\n"

/* DNS:a.example.test, until 2002-03-04 05:06:07 */
#define PEM_EXPIRED \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBfDCCASOgAwIBAgIUSrNN4RlH0j3o+LCqPgm1guPDOPYwCgYIKoZIzj0EAwIw\n" \
    "EjEQMA4GA1UEAwwHdGVzdCBDQTAeFw0wMTAxMDEwMDAwMDBaFw0wMjAzMDQwNTA2\n" \
    "MDdaMAwxCjAIBgNVBAMMAXMwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNCAATj0U/V\n" \
    "Az1Rt+1g/HIcmyB/BlwDWv8eiWU4SyNypgh6tDUIST4Z+rVNHyH6Qu5dvajHFXb5\n" \
    "9b4Ll243/zG7ZXB2o10wWzAZBgNVHREEEjAQgg5hLmV4YW1wbGUudGVzdDAdBgNV\n" \
    "HQ4EFgQUFFFHODCl8aqICLtentjEZMhAu3swHwYDVR0jBBgwFoAUsayDKwFA84Tk\n" \
    "MBohXZCsaVTr+jowCgYIKoZIzj0EAwIDRwAwRAIgbyF2LNiaVeZzCCqr8An8WKA+\n" \
    "M7XBIAHlLkz1yDi0q4UCICnm8sX5c47taq/0W/EPJTbMCahUtgJTVIEwL9csIvAA\n" \
    "-----END CERTIFICATE-----\n"

/* DNS:a.example.test, from 2096-02-03 04:05:06 */
#define PEM_FUTURE \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBgTCCASegAwIBAgIUK2nvHfRw9Db7k9Are0+IFKe30PcwCgYIKoZIzj0EAwIw\n" \
    "EjEQMA4GA1UEAwwHdGVzdCBDQTAiGA8yMDk2MDIwMzA0MDUwNloYDzIwOTcwMTAx\n" \
    "MDAwMDAwWjAMMQowCAYDVQQDDAFzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n" \
    "49FP1QM9UbftYPxyHJsgfwZcA1r/HollOEsjcqYIerQ1CEk+Gfq1TR8h+kLuXb2o\n" \
    "xxV2+fW+C5duN/8xu2VwdqNdMFswGQYDVR0RBBIwEIIOYS5leGFtcGxlLnRlc3Qw\n" \
    "HQYDVR0OBBYEFBRRRzgwpfGqiAi7Xp7YxGTIQLt7MB8GA1UdIwQYMBaAFLGsgysB\n" \
    "QPOE5DAaIV2QrGlU6/o6MAoGCCqGSM49BAMCA0gAMEUCIQDsbnpznF+S7eOxMAaO\n" \
    "PAa+Od+S5lE0R+QrGqz0AeaPEgIgaLgE2NHfCsfp+AxYEhy3Rh35mDH+frwhGST+\n" \
    "AjnCO6U=\n" \
    "-----END CERTIFICATE-----\n"

/* CN = another CA */
#define PEM_OTHER \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBYDCCAQagAwIBAgIUCt7SMjowqAqmslMlFzvx3WEuGK0wCgYIKoZIzj0EAwIw\n" \
    "FTETMBEGA1UEAwwKYW5vdGhlciBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEw\n" \
    "MjAzMDQwNVowFTETMBEGA1UEAwwKYW5vdGhlciBDQTBZMBMGByqGSM49AgEGCCqG\n" \
    "SM49AwEHA0IABEG8Hwn4hI6fJ6pdQpCD5wOTcbeAbjjQebTTM2o3Izo+YWXMm0Mx\n" \
    "gG9hSqdYS2cQaAnsZ1P8UY5z3XlinuNmZ0ujMjAwMA8GA1UdEwEB/wQFMAMBAf8w\n" \
    "HQYDVR0OBBYEFIEQU3k1E66acEQ9rAx2iKd5HwmYMAoGCCqGSM49BAMCA0gAMEUC\n" \
    "IDwgHgiSKxW+TECi/2iu1/dsPtQbR8pQD/l3TYjtyKldAiEA53MadffN37fGc4Lt\n" \
    "UCQASuFcnk/wUdNbOt63WiNATRw=\n" \
    "-----END CERTIFICATE-----\n"

/* a CA with an Ed25519 key */
#define PEM_ED25519 \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIIBHzCB0qADAgECAhQiL9Jym65T1kqjoVcVIi0gKjjV2DAFBgMrZXAwFTETMBEG\n" \
    "A1UEAwwKRWQyNTUxOSBDQTAgFw0yMDAxMDIwMzA0MDVaGA8yMTIwMDEwMjAzMDQw\n" \
    "NVowFTETMBEGA1UEAwwKRWQyNTUxOSBDQTAqMAUGAytlcAMhAMaRdnIrCNlg0QQf\n" \
    "pAEKnUnznVhYlhWnFfj+NW/qeejQozIwMDAPBgNVHRMBAf8EBTADAQH/MB0GA1Ud\n" \
    "DgQWBBQcKL803LSPuqn8PSA7R0AzTDZvhzAFBgMrZXADQQC4Euny2/sgUU4M0UUZ\n" \
    "sJlzb2CCbYF2x0Tf4th7J5OWiMla3/DV7E9B10RJJeD7+7gVc6BpuFUUQvDxABln\n" \
    "61sF\n" \
    "-----END CERTIFICATE-----\n"

/* CN = r, of KEY_RSA, issued by itself */
#define PEM_RSA \
    "-----BEGIN CERTIFICATE-----\n" \
    "MIICoTCCAYkCFDO0u905AQe+yK5PwCy7XrAygMf+MA0GCSqGSIb3DQEBCwUAMAwx\n" \
    "CjAIBgNVBAMMAXIwIBcNMjAwMTAyMDMwNDA1WhgPMjEyMDAxMDIwMzA0MDVaMAwx\n" \
    "CjAIBgNVBAMMAXIwggEiMA0GCSqGSIb3DQEBAQUAA4IBDwAwggEKAoIBAQCcDef5\n" \
    "RQbc8uZ/cOYaLdIGSYjmTu/xQ23bB1qs56xTLC85rhEuvbm6oT10MZiK6vAVSENM\n" \
    "jWnUAypVqY7MY9SC3e0APXYOXBtxH2pgnja5PJ9LczsZxf2GDzqK8eCmll8KTy7F\n" \
    "ktYbqF2mu/YiTH60HmVK5W0ii3fqvlaWbH6dlzzxxZT8WTR4zDlehh6GoxlwxaLK\n" \
    "wcxYnOC2vgaxdJqGDqzxcP7ZijoBuNhVn8x/Kij5pbIXIGl9YxtQCK2XPL/fLdgO\n" \
    "YW3/f3TPREVwkoJF8Rd2ixJCIcTzviZDp/gq/41Te4J54Z/PLAxlmAOIrL5azql0\n" \
    "0iMbuzWl0eKcdSCPAgMBAAEwDQYJKoZIhvcNAQELBQADggEBAJKyE5dcC1Heo3kG\n" \
    "AN+sX9gE9EzWMx8/6L84awDzbwuIf8ZvYAMxo8ODKAgFA3i5Y5gbv+Do3NxouP0s\n" \
    "Oe2bO5NQt+yaX/0seA9meTIxJ/yigC77+rL9eu163LkVlODIZLjJxx+M6h3Fkb9f\n" \
    "OmxS8ABlrqGERtUlfGVG4vXvvi3/DSaOYlBCvWk41S5Hxy9ojT8ymWOg+PezZ0DL\n" \
    "tek9eCBcsbKzi/56fktGSKPIzdadkRuJKh2NvC8S1alGaDue3aF6N/jm2/h2moyv\n" \
    "jLXUndeIb6Lsv4l6O9a4X3nnFkQ7RjMM4WDbPfo2sBUBBnj380fpMm1gIWsJoRqz\n" \
    "HOwtVIw=\n" \
    "-----END CERTIFICATE-----\n"

/* PKCS#8, P-256 */
#define KEY_EC \
    "-----BEGIN PRIVATE KEY-----\n" \
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgRtKoHwgwL9nfOXQt\n" \
    "McNElpcS1cwdFXOZ7/WX2zxnky2hRANCAATj0U/VAz1Rt+1g/HIcmyB/BlwDWv8e\n" \
    "iWU4SyNypgh6tDUIST4Z+rVNHyH6Qu5dvajHFXb59b4Ll243/zG7ZXB2\n" \
    "-----END PRIVATE KEY-----\n"

/* the same: SEC 1, after EC PARAMETERS */
#define KEY_EC_SEC1 \
    "-----BEGIN EC PARAMETERS-----\n" \
    "BggqhkjOPQMBBw==\n" \
    "-----END EC PARAMETERS-----\n" \
    "-----BEGIN EC PRIVATE KEY-----\n" \
    "MHcCAQEEIEbSqB8IMC/Z3zl0LTHDRJaXEtXMHRVzme/1l9s8Z5MtoAoGCCqGSM49\n" \
    "AwEHoUQDQgAE49FP1QM9UbftYPxyHJsgfwZcA1r/HollOEsjcqYIerQ1CEk+Gfq1\n" \
    "TR8h+kLuXb2oxxV2+fW+C5duN/8xu2Vwdg==\n" \
    "-----END EC PRIVATE KEY-----\n"

/* the same, encrypted: PKCS#8 */
#define KEY_EC_LOCKED8 \
    "-----BEGIN ENCRYPTED PRIVATE KEY-----\n" \
    "MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhARJlgOTT2OgICCAAw\n" \
    "DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEENYwQhwlp5tdZ8TeJoRhpjsEgZBb\n" \
    "5tVx0UKyLqX0utFwukdUp7Mm2daGk20ujLCQq2QRbTR30aTNvJjRtBL+RBhCDoO3\n" \
    "dAQ5eOTa/00jU7JL62FXqqiTR2Ki840vKMfNjXRy8R9nv7F24flgGEHmWNt/epMJ\n" \
    "AIT9hJStZ41kQzJKTRI+zlU/M6uVon4H4Epwq3/jEP3hXT5M+AVovrwmWgT8mag=\n" \
    "-----END ENCRYPTED PRIVATE KEY-----\n"

/* the same, encrypted: by a header of the PEM text */
#define KEY_EC_LOCKED1 \
    "-----BEGIN EC PRIVATE KEY-----\n" \
    "Proc-Type: 4,ENCRYPTED\n" \
    "DEK-Info: AES-128-CBC,FE22EB45EDF0BEE18BC16FCEADC7C903\n" \
    "\n" \
    "VFbAw+VbL7lsokZ+/KxTTFThu1eG9PWBwSGywUzfPDNjNDNk2YjiIuYu8mtI5E4W\n" \
    "lmguxQ8epkCQgYrJUEjTaaWb8c6QEYku0QmpOZv3EelXlRrHLRPsUz7qbFSV+dc+\n" \
    "tINfMH1Y/XT73NC8rgdbzFH6QIcDkzLzFhuA7I7ESwE=\n" \
    "-----END EC PRIVATE KEY-----\n"

/* of the other CA */
#define KEY_OTHER \
    "-----BEGIN PRIVATE KEY-----\n" \
    "MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQg7HoEPH6hxyUWC8QJ\n" \
    "UwtfEW2pVB9KlJdiuuvQWyJRys2hRANCAARBvB8J+ISOnyeqXUKQg+cDk3G3gG44\n" \
    "0Hm00zNqNyM6PmFlzJtDMYBvYUqnWEtnEGgJ7GdT/FGOc915Yp7jZmdL\n" \
    "-----END PRIVATE KEY-----\n"

/* PKCS#8 */
#define KEY_ED25519 \
    "-----BEGIN PRIVATE KEY-----\n" \
    "MC4CAQAwBQYDK2VwBCIEICf07M77+R7tD8U1gd7+0acIdIYDPDON+MBOjwawl17B\n" \
    "-----END PRIVATE KEY-----\n"

/* PKCS#8, 2048 bits */
#define KEY_RSA \
    "-----BEGIN PRIVATE KEY-----\n" \
    "MIIEvAIBADANBgkqhkiG9w0BAQEFAASCBKYwggSiAgEAAoIBAQCcDef5RQbc8uZ/\n" \
    "cOYaLdIGSYjmTu/xQ23bB1qs56xTLC85rhEuvbm6oT10MZiK6vAVSENMjWnUAypV\n" \
    "qY7MY9SC3e0APXYOXBtxH2pgnja5PJ9LczsZxf2GDzqK8eCmll8KTy7FktYbqF2m\n" \
    "u/YiTH60HmVK5W0ii3fqvlaWbH6dlzzxxZT8WTR4zDlehh6GoxlwxaLKwcxYnOC2\n" \
    "vgaxdJqGDqzxcP7ZijoBuNhVn8x/Kij5pbIXIGl9YxtQCK2XPL/fLdgOYW3/f3TP\n" \
    "REVwkoJF8Rd2ixJCIcTzviZDp/gq/41Te4J54Z/PLAxlmAOIrL5azql00iMbuzWl\n" \
    "0eKcdSCPAgMBAAECggEAHRn0yAXo1TxQ4rQtnPUthPGin3xZ/455Bo71CGh9uNb1\n" \
    "CZcd6i8EWzrlaG01SrasRfO/ZR+7/AcJFodzs0bsouj64QAVK3FexrY6ksD+aIXX\n" \
    "GO1ouJI1CJJ/ctjPcZF6MMR6burGlcrMiCLmMBg+yp0ee5yUQQxsNPEA2bVq2T1H\n" \
    "mksSISBDgcYw5aYkB7CMGGE8ySsVDaNw8dGKSisaHlvs5AxsAUKS9suv5Dr6FHBZ\n" \
    "qTjSPEqYv+l17vo+BvHuXsSk2zrxb/OEgSr4+cLPSFM1TJw7rW6yqKBvp+ylG0Yn\n" \
    "hgpY53VI+zY7bwB6BOIdrCi29RiHUwIz5oirTlKU9QKBgQDY+AXWQtxOlMZ2rrSD\n" \
    "XW+0eb7vT/J/z1+cQUthWdPEM1RbxxVLN7Wb4samDkeErXLcFKIbaKbmG1yBNAuk\n" \
    "mhiqhBhp2bY85uZZ2GPeVurcHnn2Zd0VMrFocHd3V9IBb176eyyXWT7AYqrzNxMM\n" \
    "PoQxy6BRpZEmYNXgl5bDXo5DLQKBgQC4IJypMp1HYDYXZgiDnCTksF2zICe94m4y\n" \
    "eHmWYcootRJUbwZ/+UqzL32lJEBdB4zsUX9PpiGD6rgw9/zjbW/iBZGMKYIh/DoK\n" \
    "KUZY52iDyc1qnOALip5ZEhwPsqfOnye8g6pXal1XasLg30JNfP5Bq0s53sk/RDYY\n" \
    "GIOp7hY4KwKBgH8dcG4DZgcz6sKFwIRmLZfS7CZQ9IYk/KMTLhKvCf6dBANxM+yJ\n" \
    "iwD1b+TB4Oy+odiGziK4wW93AE9CKsAY9/KOya7aOoab0ME6oegVjCvCPzo4m7pb\n" \
    "pMzHd3aYIRVuJnshxxI02yrjo7wyvBokVlbGMfsjwVJ20Vdv+Igl0btRAoGADNHg\n" \
    "dntargSJ35kwEJHHk9CfxYAApFzmlUcEGC9Y1vq8evp79l8SD2XIFr5uaMvEyRNn\n" \
    "jNEhVkD6cBZkGiWde5wtpReiwuD/3YNALaJ3CW38ima/xq3xFnyHTaR/wIgeSSbV\n" \
    "rl5uf06koOmKgUCpp0LY6v+S/X+vUIAscqFsFJ8CgYAK0UQu34GU+q7OoPIrrNQn\n" \
    "o/C3HNGdeLvGh/d5gCdsDonT82MOjn8h5mdaBOUQ7Q57HuDJkrMRg8FGfjcSwPkX\n" \
    "kR/er3zYJThP262dcq9k5rBIy4GYtUAFbreyCxVneXtKjhUYD8SvfpT8XnLJhGPC\n" \
    "44TB40n0OAJsCHKSfEIxJg==\n" \
    "-----END PRIVATE KEY-----\n"

/* the same: PKCS#1 */
#define KEY_RSA_PKCS1 \
    "-----BEGIN RSA PRIVATE KEY-----\n" \
    "MIIEogIBAAKCAQEAnA3n+UUG3PLmf3DmGi3SBkmI5k7v8UNt2wdarOesUywvOa4R\n" \
    "Lr25uqE9dDGYiurwFUhDTI1p1AMqVamOzGPUgt3tAD12DlwbcR9qYJ42uTyfS3M7\n" \
    "GcX9hg86ivHgppZfCk8uxZLWG6hdprv2Ikx+tB5lSuVtIot36r5Wlmx+nZc88cWU\n" \
    "/Fk0eMw5XoYehqMZcMWiysHMWJzgtr4GsXSahg6s8XD+2Yo6AbjYVZ/Mfyoo+aWy\n" \
    "FyBpfWMbUAitlzy/3y3YDmFt/390z0RFcJKCRfEXdosSQiHE874mQ6f4Kv+NU3uC\n" \
    "eeGfzywMZZgDiKy+Ws6pdNIjG7s1pdHinHUgjwIDAQABAoIBAB0Z9MgF6NU8UOK0\n" \
    "LZz1LYTxop98Wf+OeQaO9QhofbjW9QmXHeovBFs65WhtNUq2rEXzv2Ufu/wHCRaH\n" \
    "c7NG7KLo+uEAFStxXsa2OpLA/miF1xjtaLiSNQiSf3LYz3GRejDEem7qxpXKzIgi\n" \
    "5jAYPsqdHnuclEEMbDTxANm1atk9R5pLEiEgQ4HGMOWmJAewjBhhPMkrFQ2jcPHR\n" \
    "ikorGh5b7OQMbAFCkvbLr+Q6+hRwWak40jxKmL/pde76Pgbx7l7EpNs68W/zhIEq\n" \
    "+PnCz0hTNUycO61usqigb6fspRtGJ4YKWOd1SPs2O28AegTiHawotvUYh1MCM+aI\n" \
    "q05SlPUCgYEA2PgF1kLcTpTGdq60g11vtHm+70/yf89fnEFLYVnTxDNUW8cVSze1\n" \
    "m+LGpg5HhK1y3BSiG2im5htcgTQLpJoYqoQYadm2PObmWdhj3lbq3B559mXdFTKx\n" \
    "aHB3d1fSAW9e+nssl1k+wGKq8zcTDD6EMcugUaWRJmDV4JeWw16OQy0CgYEAuCCc\n" \
    "qTKdR2A2F2YIg5wk5LBdsyAnveJuMnh5lmHKKLUSVG8Gf/lKsy99pSRAXQeM7FF/\n" \
    "T6Yhg+q4MPf8421v4gWRjCmCIfw6CilGWOdog8nNapzgC4qeWRIcD7Knzp8nvIOq\n" \
    "V2pdV2rC4N9CTXz+QatLOd7JP0Q2GBiDqe4WOCsCgYB/HXBuA2YHM+rChcCEZi2X\n" \
    "0uwmUPSGJPyjEy4Srwn+nQQDcTPsiYsA9W/kweDsvqHYhs4iuMFvdwBPQirAGPfy\n" \
    "jsmu2jqGm9DBOqHoFYwrwj86OJu6W6TMx3d2mCEVbiZ7IccSNNsq46O8MrwaJFZW\n" \
    "xjH7I8FSdtFXb/iIJdG7UQKBgAzR4HZ7Wq4Eid+ZMBCRx5PQn8WAAKRc5pVHBBgv\n" \
    "WNb6vHr6e/ZfEg9lyBa+bmjLxMkTZ4zRIVZA+nAWZBolnXucLaUXosLg/92DQC2i\n" \
    "dwlt/Ipmv8at8RZ8h02kf8CIHkkm1a5ebn9OpKDpioFAqadC2Or/kv1/r1CALHKh\n" \
    "bBSfAoGACtFELt+BlPquzqDyK6zUJ6PwtxzRnXi7xof3eYAnbA6J0/NjDo5/IeZn\n" \
    "WgTlEO0Oex7gyZKzEYPBRn43EsD5F5Ef3q982CU4T9utnXKvZOawSMuBmLVABW63\n" \
    "sgsVZ3l7So4VGA/Er36U/F5yyYRjwuOEweNJ9DgCbAhyknxCMSY=\n" \
    "-----END RSA PRIVATE KEY-----\n"
