"""A small CRM with a REST interface, for tests: Django REST framework on SQLite, served by waitress.

Usage: rest_server.py PORT DATABASE TOKEN

  contacts/  keys are unique, pages by number, versions as ETags that If-Match is held against, filters by django-filter
  people/    the same table of records without any of that: keys may repeat, pages by offset, a filter that it does not know
             is ignored, a field that it does not know is dropped
  counters/  how many requests came, and how many with a wrong token
"""

import sys
import threading

import django
from django.conf import settings

PORT, DATABASE, TOKEN = sys.argv[1:4]

settings.configure(
    SECRET_KEY="for tests",
    ALLOWED_HOSTS=["127.0.0.1"],
    ROOT_URLCONF=__name__,
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": DATABASE,
            "OPTIONS": {"timeout": 30, "transaction_mode": "IMMEDIATE"},
        }
    },
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "rest_framework", "django_filters"],
    REST_FRAMEWORK={
        "DEFAULT_AUTHENTICATION_CLASSES": [__name__ + ".Token"],
        "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
        "UNAUTHENTICATED_USER": None,
        "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    },
    USE_TZ=True,
)
sys.modules[settings.ROOT_URLCONF] = sys.modules[__name__]

from rest_framework.authentication import BaseAuthentication  # noqa: E402
from rest_framework.exceptions import APIException, AuthenticationFailed  # noqa: E402

COUNTERS = {"requests": 0, "refused": 0}
LOCK = threading.Lock()


class Known:
    is_authenticated = True


class Token(BaseAuthentication):
    def authenticate(self, request):
        with LOCK:
            COUNTERS["requests"] += 1
        if request.headers.get("Authorization") == "Token " + TOKEN:
            return Known(), None
        with LOCK:
            COUNTERS["refused"] += 1
        raise AuthenticationFailed()

    def authenticate_header(self, request):
        return "Token"


django.setup()

from django.db import connection, models, transaction  # noqa: E402
from django.urls import include, path  # noqa: E402
from rest_framework import pagination, routers, serializers, viewsets  # noqa: E402
from rest_framework.decorators import api_view  # noqa: E402
from rest_framework.filters import OrderingFilter  # noqa: E402
from rest_framework.response import Response  # noqa: E402
from django_filters.rest_framework import DjangoFilterBackend  # noqa: E402


class Record(models.Model):
    guid = models.CharField(max_length=200, blank=True)
    last_name = models.CharField(max_length=80)
    email = models.EmailField(blank=True)
    phone = models.CharField(max_length=30, blank=True)
    balance = models.DecimalField(max_digits=12, decimal_places=2, null=True, blank=True)
    born = models.DateField(null=True, blank=True)
    active = models.BooleanField(default=True)
    version = models.IntegerField(default=1)
    modified = models.DateTimeField(auto_now=True, db_index=True)
    created = models.DateTimeField(auto_now_add=True)

    class Meta:
        app_label = "crm"
        abstract = True


class Contact(Record):
    guid = models.CharField(max_length=200, unique=True)

    class Meta:
        app_label = "crm"


class Person(Record):
    class Meta:
        app_label = "crm"


FIELDS = ["id", "guid", "last_name", "email", "phone", "balance", "born", "active", "version", "modified", "created"]


class Stale(APIException):
    status_code = 412
    default_detail = "The record has changed."


class Missing(APIException):
    status_code = 428
    default_detail = "If-Match is needed."


class Pages(pagination.PageNumberPagination):
    page_size = 10
    page_size_query_param = "page_size"
    max_page_size = 100


class Offsets(pagination.LimitOffsetPagination):
    default_limit = 10
    max_limit = 50


def serializer_of(of):
    class Serializer(serializers.ModelSerializer):
        class Meta:
            model = of
            fields = FIELDS
            read_only_fields = ["version", "modified", "created"]

    return Serializer


class Contacts(viewsets.ModelViewSet):
    queryset = Contact.objects.all()
    serializer_class = serializer_of(Contact)
    pagination_class = Pages
    filter_backends = [DjangoFilterBackend, OrderingFilter]
    filterset_fields = {"guid": ["exact"], "last_name": ["exact"], "email": ["exact"], "modified": ["gte"]}
    ordering_fields = ["id", "modified"]
    ordering = ["id"]

    def finalize_response(self, request, response, *args, **kwargs):
        response = super().finalize_response(request, response, *args, **kwargs)
        if isinstance(response.data, dict) and "version" in response.data:
            response["ETag"] = '"%s"' % response.data["version"]
        return response

    def guarded(self, pk):
        """Holds If-Match against the version, in the transaction that writes."""
        wanted = self.request.headers.get("If-Match")
        if wanted is None:
            return
        record = Contact.objects.select_for_update().filter(pk=pk).first()
        if record is not None and wanted != '"%s"' % record.version:
            raise Stale()

    def update(self, request, *args, **kwargs):
        with transaction.atomic():
            self.guarded(kwargs["pk"])
            return super().update(request, *args, **kwargs)

    def destroy(self, request, *args, **kwargs):
        with transaction.atomic():
            self.guarded(kwargs["pk"])
            return super().destroy(request, *args, **kwargs)

    def perform_update(self, serializer):
        serializer.save(version=serializer.instance.version + 1)


class People(viewsets.ModelViewSet):
    queryset = Person.objects.all()
    serializer_class = serializer_of(Person)
    pagination_class = Offsets
    filter_backends = [DjangoFilterBackend, OrderingFilter]
    filterset_fields = {"guid": ["exact"], "last_name": ["exact"], "email": ["exact"], "modified": ["gte"]}
    ordering_fields = ["id", "modified"]
    ordering = ["id"]


@api_view(["POST"])
def greet(request, pk):
    record = Person.objects.get(pk=pk)
    return Response({"greeting": request.data.get("word", "Hello") + " " + record.last_name})


def counters(request):
    from django.http import JsonResponse

    return JsonResponse(COUNTERS)


router = routers.SimpleRouter()
router.register("contacts", Contacts)
router.register("people", People)
urlpatterns = [
    path("api/", include(router.urls)),
    path("api/people/<int:pk>/greet/", greet),
    path("counters/", counters),
]

with connection.cursor() as cursor:
    cursor.execute("PRAGMA journal_mode=WAL")
existing = connection.introspection.table_names()
with connection.schema_editor() as editor:
    for model in (Contact, Person):
        if model._meta.db_table not in existing:
            editor.create_model(model)
connection.close()

if __name__ == "__main__":
    from django.core.wsgi import get_wsgi_application
    import waitress

    waitress.serve(get_wsgi_application(), host="127.0.0.1", port=int(PORT), threads=8)
